//! The bytes of images: kept as received; the first bytes decide the type.

use crate::budget::Reservation;
use bytes::Bytes;

/// An image that is whole, of a known type, and whose memory is accounted for.
#[derive(Debug)]
pub struct Image {
    pub blob: Blob,
    pub format: Format,
    /// Given back to the budget on drop.
    _reservation: Reservation,
}

impl Image {
    /// `None` if the bytes are not a known image.
    pub fn new(blob: Blob, reservation: Reservation) -> Option<Image> {
        let format = Format::of(&blob)?;
        Some(Image { blob, format, _reservation: reservation })
    }
}

/// The type of an image by its bytes, whatever type the model names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Png,
    Jpeg,
    Webp,
    Gif,
    Avif,
    Heic,
}

impl Format {
    pub const ALL: [Format; 6] =
        [Format::Png, Format::Jpeg, Format::Webp, Format::Gif, Format::Avif, Format::Heic];

    /// `None` if the bytes are of an unknown type, or fewer than an image of their type has.
    pub fn of(blob: &Blob) -> Option<Format> {
        let format = match blob.first_bytes() {
            [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => Format::Png,
            [0xff, 0xd8, 0xff, ..] => Format::Jpeg,
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Format::Webp,
            [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Format::Gif,
            [_, _, _, _, b'f', b't', b'y', b'p', ..] => heif_format(blob.first_bytes())?,
            _ => return None,
        };
        (blob.len() >= format.smallest_bytes()).then_some(format)
    }

    /// No image of this type is smaller, even with a single pixel.
    fn smallest_bytes(self) -> usize {
        match self {
            Format::Png => 67,
            Format::Jpeg => 107,
            Format::Webp | Format::Gif => 26,
            Format::Avif | Format::Heic => 64,
        }
    }

    pub fn content_type(self) -> &'static str {
        match self {
            Format::Png => "image/png",
            Format::Jpeg => "image/jpeg",
            Format::Webp => "image/webp",
            Format::Gif => "image/gif",
            Format::Avif => "image/avif",
            Format::Heic => "image/heic",
        }
    }

    pub fn extension(self) -> &'static str {
        match self {
            Format::Png => "png",
            Format::Jpeg => "jpg",
            Format::Webp => "webp",
            Format::Gif => "gif",
            Format::Avif => "avif",
            Format::Heic => "heic",
        }
    }
}

/// The first known brand of a `ftyp` box: size, `ftyp`, major brand, version, compatible brands (ISO 14496-12).
fn heif_format(bytes: &[u8]) -> Option<Format> {
    let size = u32::from_be_bytes(*bytes.first_chunk()?) as usize;
    let brands = bytes[8..size.clamp(8, bytes.len())].chunks_exact(4);
    let format = |brand: &[u8]| match brand {
        b"avif" | b"avis" => Some(Format::Avif),
        b"heic" | b"heix" | b"heim" | b"heis" | b"hevc" | b"hevx" => Some(Format::Heic),
        _ => None,
    };
    brands.filter_map(format).next()
}

/// Bytes in the chunks they were written in; clones share them.
#[derive(Debug, Clone, Default)]
pub struct Blob {
    chunks: Vec<Bytes>,
    len: usize,
    crc32c: u32,
}

impl Blob {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn crc32c(&self) -> u32 {
        self.crc32c
    }

    pub fn chunks(&self) -> &[Bytes] {
        &self.chunks
    }

    fn first_bytes(&self) -> &[u8] {
        self.chunks.first().map_or(&[], |chunk| chunk)
    }

    #[cfg(test)]
    pub fn to_vec(&self) -> Vec<u8> {
        self.chunks.concat()
    }
}

impl From<Vec<u8>> for Blob {
    fn from(bytes: Vec<u8>) -> Blob {
        Blob { len: bytes.len(), crc32c: crc32c::crc32c(&bytes), chunks: vec![bytes.into()] }
    }
}

/// Collects a [`Blob`] in chunks of `CHUNK_BYTES`, so that bytes are never moved to make room.
#[derive(Default)]
pub struct BlobWriter {
    blob: Blob,
    /// The chunk being filled; its length is `CHUNK_BYTES` or, before the first write, zero.
    chunk: Vec<u8>,
    filled: usize,
}

impl BlobWriter {
    pub fn written(&self) -> usize {
        self.blob.len + self.filled
    }

    /// The space for the next bytes: at least three, which four base64 symbols decode to.
    pub fn room(&mut self) -> &mut [u8] {
        if self.chunk.len() - self.filled < 3 {
            self.seal();
            self.chunk = vec![0; CHUNK_BYTES];
        }
        &mut self.chunk[self.filled..]
    }

    /// Takes the first `len` bytes of [`room`](BlobWriter::room) as written.
    pub fn fill(&mut self, len: usize) {
        self.filled += len;
    }

    pub fn finish(mut self) -> Blob {
        self.seal();
        self.blob
    }

    fn seal(&mut self) {
        let mut chunk = std::mem::take(&mut self.chunk);
        chunk.truncate(std::mem::take(&mut self.filled));
        if chunk.is_empty() {
            return;
        }
        chunk.shrink_to_fit();
        self.blob.len += chunk.len();
        self.blob.crc32c = crc32c::crc32c_append(self.blob.crc32c, &chunk);
        self.blob.chunks.push(chunk.into());
    }
}

/// A multiple of three, so that whole groups of base64 fill a chunk to its last byte.
const CHUNK_BYTES: usize = 96 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine as _;
    use base64::prelude::BASE64_STANDARD;

    fn blob(bytes: &[u8]) -> Blob {
        bytes.to_vec().into()
    }

    #[test]
    fn the_type_follows_the_first_bytes() {
        for (bytes, format) in [
            (&b"\x89PNG\r\n\x1a\nrest"[..], Some(Format::Png)),
            (b"\xff\xd8\xff\xe0rest", Some(Format::Jpeg)),
            (b"RIFF\x10\0\0\0WEBPVP8 ", Some(Format::Webp)),
            (b"GIF89a", Some(Format::Gif)),
            (b"GIF87a", Some(Format::Gif)),
            (b"\0\0\0\x1cftypavif\0\0\0\0avifmif1", Some(Format::Avif)),
            (b"\0\0\0\x1cftypmif1\0\0\0\0miafavif", Some(Format::Avif)),
            (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", Some(Format::Heic)),
            (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", Some(Format::Heic)),
            (b"\0\0\0\x14ftypisom\0\0\0\0isomavif", None),
            (b"\0\0\0\0ftypmif1\0\0\0\0heic", None),
            (b"\xff\xff\xff\xffftyp", None),
            (b"GIF90a", None),
            (b"RIFF\x10\0\0\0WAVE", None),
            (b"<html>", None),
        ] {
            let padded = [bytes, &[0; 200]].concat();
            assert_eq!(Format::of(&blob(&padded)), format, "{bytes:?}");
            assert_eq!(Format::of(&blob(bytes)), None, "{bytes:?} alone is too short");
        }
        assert_eq!(Format::of(&blob(b"")), None);
    }

    #[test]
    fn the_smallest_images_are_images() {
        for (image, format) in [(PNG, Format::Png), (WEBP, Format::Webp), (GIF, Format::Gif)] {
            let bytes = BASE64_STANDARD.decode(image).unwrap();
            assert_eq!(Format::of(&blob(&bytes)), Some(format), "{} bytes", bytes.len());
        }
    }

    const PNG: &str = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABAQAAAAA3bvkkAAAACklEQVR4AWNgAAAAAgABc3UBGAAAAABJRU5ErkJggg==";
    const WEBP: &str = "UklGRhIAAABXRUJQVlA4TAYAAAAvQWxvAGs=";
    const GIF: &str = "R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7";

    #[test]
    fn bytes_written_in_any_portions_are_read_back() {
        let bytes: Vec<u8> = (0..3 * CHUNK_BYTES + 100).map(|i| (i * 7) as u8).collect();
        for portion in [3, 1000, 96_000, CHUNK_BYTES] {
            let mut writer = BlobWriter::default();
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let room = writer.room();
                let len = portion.min(room.len()).min(rest.len());
                room[..len].copy_from_slice(&rest[..len]);
                writer.fill(len);
                rest = &rest[len..];
            }
            assert_eq!(writer.written(), bytes.len());
            let blob = writer.finish();
            assert!(blob.to_vec() == bytes && blob.len() == bytes.len(), "{portion}");
            assert_eq!(blob.crc32c(), crc32c::crc32c(&bytes));
        }
    }
}
