"""The service as originally designed: Flask, google-cloud-aiplatform, google-cloud-storage."""

import base64
import logging
import os
import uuid

from flask import Flask, jsonify, request
from google.api_core.client_options import ClientOptions
from google.api_core.exceptions import GoogleAPICallError
from google.cloud import storage
from google.cloud.aiplatform.gapic import PredictionServiceClient

logging.basicConfig(
    level=logging.INFO, format='{"message": "%(message)s", "severity": "%(levelname)s"}'
)

PROJECT = os.environ["GCP_PROJECT_ID"]
LOCATION = os.environ["GCP_LOCATION"]
MODEL = os.environ["IGA_VERTEXAI_IMAGE_MODEL_ID"]
PREFIX = os.environ.get("IGA_GCS_IMAGE_PREFIX", "images/iga/")
ENDPOINT = os.environ["IGA_VERTEXAI_ENDPOINT"]

app = Flask(__name__)
# REST: the upstream of the benchmarks does not speak gRPC.
predictions = PredictionServiceClient(
    client_options=ClientOptions(api_endpoint=ENDPOINT), transport="rest"
)
bucket = storage.Client(project=PROJECT).bucket(os.environ["GCS_BUCKET_NAME"])


@app.get("/health")
def health():
    return jsonify(status="ok")


@app.post("/generate_image")
def generate_image():
    payload = request.get_json(silent=True)
    if not isinstance(payload, dict) or not payload.get("prompt"):
        return jsonify(
            error_code="IGA_BAD_REQUEST_PROMPT_MISSING", message="Prompt is required."
        ), 400
    try:
        response = predictions.predict(
            endpoint=f"projects/{PROJECT}/locations/{LOCATION}/publishers/google/models/{MODEL}",
            instances=[{"prompt": payload["prompt"]}],
            parameters={"sampleCount": 1, "aspectRatio": payload.get("aspect_ratio", "1:1")},
            timeout=180,
        )
    except GoogleAPICallError as error:
        logging.exception("generation failed")
        return jsonify(
            error_code="IGA_VERTEXAI_API_ERROR", message="Vertex AI failed.", details=str(error)
        ), 500
    image = base64.b64decode(response.predictions[0]["bytesBase64Encoded"])
    name = f"{PREFIX}iga_{uuid.uuid4().hex}.png"
    bucket.blob(name).upload_from_string(
        image, content_type="image/png", if_generation_match=0, timeout=60
    )
    logging.info("stored %s", name)
    return jsonify(
        image_url=f"gs://{bucket.name}/{name}",
        prompt_used=payload["prompt"],
        model_version=f"vertex-ai-{MODEL}",
    )
