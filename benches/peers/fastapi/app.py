"""The service in modern Python: FastAPI, google-genai, google-cloud-storage."""

import asyncio
import logging
import os
import uuid

from fastapi import FastAPI, HTTPException
from google import genai
from google.cloud import storage
from google.genai import errors, types
from pydantic import BaseModel, Field

logging.basicConfig(
    level=logging.INFO, format='{"message": "%(message)s", "severity": "%(levelname)s"}'
)

PROJECT = os.environ["GCP_PROJECT_ID"]
MODEL = os.environ["IGA_VERTEXAI_IMAGE_MODEL_ID"]
PREFIX = os.environ.get("IGA_GCS_IMAGE_PREFIX", "images/iga/")

app = FastAPI()
models = genai.Client(
    vertexai=True,
    project=PROJECT,
    location=os.environ["GCP_LOCATION"],
    http_options=types.HttpOptions(base_url=os.environ["IGA_VERTEXAI_ENDPOINT"], timeout=180_000),
).aio.models
bucket = storage.Client(project=PROJECT).bucket(os.environ["GCS_BUCKET_NAME"])


class ImageRequest(BaseModel):
    prompt: str = Field(min_length=1)
    aspect_ratio: str = "1:1"


@app.get("/health")
async def health():
    return {"status": "ok"}


@app.post("/generate_image")
async def generate_image(body: ImageRequest):
    config = types.GenerateImagesConfig(number_of_images=1, aspect_ratio=body.aspect_ratio)
    try:
        response = await models.generate_images(model=MODEL, prompt=body.prompt, config=config)
    except errors.APIError as error:
        logging.exception("generation failed")
        raise HTTPException(500, f"Vertex AI failed: {error}")
    image = response.generated_images[0].image.image_bytes
    name = f"{PREFIX}iga_{uuid.uuid4().hex}.png"
    # The storage client is synchronous, so it runs on a thread.
    await asyncio.to_thread(
        bucket.blob(name).upload_from_string,
        image,
        content_type="image/png",
        if_generation_match=0,
        timeout=60,
    )
    logging.info("stored %s", name)
    return {
        "image_url": f"gs://{bucket.name}/{name}",
        "prompt_used": body.prompt,
        "model_version": f"vertex-ai-{MODEL}",
    }
