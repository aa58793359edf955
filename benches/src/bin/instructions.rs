//! The way of one picture through the process, without the network: the model's answer in the pieces in which it
//! arrives, the picture lifted out of it, the upload's body taken to its end.
//!
//! `instructions PICTURES` does that so many times; run under callgrind, two runs' difference is one picture's count.

use bytes::Bytes;
use http_body_util::BodyExt;
use iga::budget::Budget;
use iga::client::BUFFER_BYTES;
use iga::image::Picture;
use iga::lift::{Lift, Limits};
use iga::model::Family;
use iga::storage::Multipart;
use iga_benches::{ANSWER_HEAD, ANSWER_TAIL, Args, picture};
use serde_json::json;
use std::hint::black_box;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let pictures = Args::new("instructions PICTURES").number();
    let answer = answer(&picture(PICTURE_BYTES));
    let budget = Budget::new(2 * PICTURE_BYTES);
    for _ in 0..pictures {
        let sent = lift_and_store(&answer, &budget).await;
        assert!(sent > PICTURE_BYTES, "{sent} bytes were sent");
    }
}

async fn lift_and_store(answer: &Bytes, budget: &Budget) -> usize {
    let mut share = budget.share(PICTURE_BYTES).await;
    let mut lift = Lift::new(Limits::DEFAULT, Family::Imagen.best_so_far());
    for piece in answer.chunks(BUFFER_BYTES) {
        lift.feed(piece).expect("the answer is valid");
        share.grow_to(lift.held_bytes()).await;
    }
    let mut lifted = lift.finish().expect("the answer is whole");
    let blob = lifted.pictures.remove(0).expect("the picture was kept");
    let picture = Picture::new(blob, share).expect("it begins like a PNG");
    let resource = json!({"name": "picture.png"});
    let mut body = Multipart::new(&resource, picture.format.content_type(), &picture.blob);
    let mut sent = 0;
    while let Some(Ok(frame)) = body.frame().await {
        sent += black_box(frame.into_data().expect("it has no trailers")).len();
    }
    sent
}

fn answer(picture: &[u8]) -> Bytes {
    use base64::Engine as _;
    let text = base64::prelude::BASE64_STANDARD.encode(picture);
    [ANSWER_HEAD, &text, ANSWER_TAIL].concat().into()
}

const PICTURE_BYTES: usize = 8 << 20;
