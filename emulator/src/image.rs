//! The bytes of images: real ones of every type, padded to a size.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::drawing::Drawing;

/// Which image a response holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ImageSpec {
    /// By default what the request asks for. GIF, WebP, AVIF and HEIC show a swatch instead of the
    /// prompt.
    pub format: Option<ImageFormat>,
    /// Pads the image to this size; a larger one stays as it is.
    pub bytes: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageFormat {
    Png,
    Jpeg,
    #[serde(rename = "webp")]
    WebP,
    Gif,
    Avif,
    Heic,
}

impl ImageFormat {
    pub(crate) fn mime_type(self) -> &'static str {
        match self {
            Self::Png => "image/png",
            Self::Jpeg => "image/jpeg",
            Self::WebP => "image/webp",
            Self::Gif => "image/gif",
            Self::Avif => "image/avif",
            Self::Heic => "image/heic",
        }
    }

    /// A drawing in this format; `bytes` is the least size.
    pub(crate) fn encode(self, drawing: &Drawing, bytes: usize) -> Vec<u8> {
        let image = match self {
            Self::Png => drawing.png(),
            Self::Jpeg => drawing.jpeg(),
            Self::WebP => include_bytes!("swatches/swatch.webp").to_vec(),
            Self::Gif => include_bytes!("swatches/swatch.gif").to_vec(),
            Self::Avif => include_bytes!("swatches/swatch.avif").to_vec(),
            Self::Heic => include_bytes!("swatches/swatch.heic").to_vec(),
        };
        self.pad(image, bytes)
    }

    pub(crate) fn encode_base64(self, drawing: &Drawing, bytes: usize) -> String {
        STANDARD.encode(self.encode(drawing, bytes))
    }

    /// Adds what readers of the format skip.
    fn pad(self, mut image: Vec<u8>, bytes: usize) -> Vec<u8> {
        let missing = bytes.saturating_sub(image.len());
        if missing == 0 {
            return image;
        }
        match self {
            Self::Png => {
                let end = image.len() - PNG_END_BYTES;
                image.splice(end..end, png_chunk(missing));
            }
            Self::Jpeg => {
                image.splice(2..2, jpeg_comments(missing));
            }
            Self::WebP => {
                image.extend(riff_chunk(missing));
                let riff_size = (image.len() - 8) as u32;
                image[4..8].copy_from_slice(&riff_size.to_le_bytes());
            }
            Self::Gif => {
                let trailer = image.len() - 1;
                image.splice(trailer..trailer, gif_comment(missing));
            }
            Self::Avif | Self::Heic => image.extend(free_box(missing)),
        }
        image
    }
}

/// A private, ancillary chunk.
fn png_chunk(bytes: usize) -> Vec<u8> {
    let data = vec![0; bytes.saturating_sub(12)];
    let mut typed = b"paDd".to_vec();
    typed.extend(&data);
    let mut chunk = (data.len() as u32).to_be_bytes().to_vec();
    chunk.extend(&typed);
    chunk.extend(crc32fast::hash(&typed).to_be_bytes());
    chunk
}

fn jpeg_comments(bytes: usize) -> Vec<u8> {
    let mut comments = Vec::with_capacity(bytes);
    while comments.len() < bytes {
        let data = (bytes - comments.len()).saturating_sub(4).min(0xfff0);
        comments.extend([0xff, 0xfe]);
        comments.extend((data as u16 + 2).to_be_bytes());
        comments.resize(comments.len() + data, 0);
    }
    comments
}

fn riff_chunk(bytes: usize) -> Vec<u8> {
    let data = bytes.saturating_sub(8).next_multiple_of(2);
    let mut chunk = b"PADD".to_vec();
    chunk.extend((data as u32).to_le_bytes());
    chunk.resize(8 + data, 0);
    chunk
}

fn gif_comment(bytes: usize) -> Vec<u8> {
    let mut comment = vec![0x21, 0xfe];
    while comment.len() + 1 < bytes {
        let data = (bytes - comment.len() - 1).saturating_sub(1).clamp(1, 255);
        comment.push(data as u8);
        comment.resize(comment.len() + data, b' ');
    }
    comment.push(0);
    comment
}

/// A box that readers of the ISO base media file format skip.
fn free_box(bytes: usize) -> Vec<u8> {
    let size = bytes.max(8);
    let mut padding = (size as u32).to_be_bytes().to_vec();
    padding.extend(b"free");
    padding.resize(size, 0);
    padding
}

const PNG_END_BYTES: usize = 12;
