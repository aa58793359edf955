//! Moves images through IGA's own code without a network: feeds the model's response in chunks, extracts the image
//! and reads the body of its upload to the end.
//!
//! `instructions IMAGES` repeats that for this many images. Run it under callgrind with two different numbers: the
//! difference is the count of instructions for the additional images.

use bytes::Bytes;
use http_body_util::BodyExt;
use iga::budget::Budget;
use iga::extract::{ImageExtractor, Limits};
use iga::google::http::BUFFER_BYTES;
use iga::google::storage::Multipart;
use iga::image::Image;
use iga::model::Family;
use iga_benches::{Args, RESPONSE_HEAD, RESPONSE_TAIL, image};
use serde_json::json;
use std::hint::black_box;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let images: usize = Args::new("instructions IMAGES").positional();
    let response = response(&image(IMAGE_BYTES));
    let budget = Budget::new(2 * IMAGE_BYTES);
    for _ in 0..images {
        let sent = extract_and_upload(&response, &budget).await;
        assert!(sent > IMAGE_BYTES, "{sent} bytes were sent");
    }
}

async fn extract_and_upload(response: &Bytes, budget: &Budget) -> usize {
    let mut reservation = budget.reserve(IMAGE_BYTES).await;
    let mut extractor = ImageExtractor::new(Limits::DEFAULT, Family::Imagen.best_so_far());
    for chunk in response.chunks(BUFFER_BYTES) {
        extractor.feed(chunk).expect("the response is valid");
        reservation.grow_to(extractor.held_bytes()).await;
    }
    let mut extracted = extractor.finish().expect("the response is complete");
    let blob = extracted.images.remove(0).expect("the image was kept");
    let image = Image::new(blob, reservation).expect("the image begins like a PNG");
    let resource = json!({"name": "image.png"});
    let mut body = Multipart::new(&resource, image.format.content_type(), &image.blob);
    let mut sent = 0;
    while let Some(Ok(frame)) = body.frame().await {
        sent += black_box(frame.into_data().expect("the body has no trailers")).len();
    }
    sent
}

fn response(image: &[u8]) -> Bytes {
    use base64::Engine as _;
    let text = base64::prelude::BASE64_STANDARD.encode(image);
    [RESPONSE_HEAD, &text, RESPONSE_TAIL].concat().into()
}

const IMAGE_BYTES: usize = 8 << 20;
