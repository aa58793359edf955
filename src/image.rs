//! Picture bytes: kept as they were received, typed by their first bytes.

use crate::budget::Share;
use bytes::Bytes;

/// A picture that is whole, of a known type, and whose memory is accounted for.
#[derive(Debug)]
pub struct Picture {
    pub blob: Blob,
    pub format: Format,
    /// Given back to the budget when the picture is dropped.
    _share: Share,
}

impl Picture {
    /// None where the bytes are of no type that is known here.
    pub fn new(blob: Blob, share: Share) -> Option<Picture> {
        let format = Format::of(blob.first_bytes())?;
        Some(Picture { blob, format, _share: share })
    }
}

/// What the bytes are, whatever the model called them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Png,
    Jpeg,
    Webp,
}

impl Format {
    fn of(first_bytes: &[u8]) -> Option<Format> {
        match first_bytes {
            [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => Some(Format::Png),
            [0xff, 0xd8, 0xff, ..] => Some(Format::Jpeg),
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some(Format::Webp),
            _ => None,
        }
    }

    pub fn content_type(self) -> &'static str {
        match self {
            Format::Png => "image/png",
            Format::Jpeg => "image/jpeg",
            Format::Webp => "image/webp",
        }
    }

    pub fn extension(self) -> &'static str {
        match self {
            Format::Png => "png",
            Format::Jpeg => "jpg",
            Format::Webp => "webp",
        }
    }
}

/// Bytes in the pieces they were written in; cloning shares them.
#[derive(Debug, Clone, Default)]
pub struct Blob {
    pieces: Vec<Bytes>,
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

    pub fn pieces(&self) -> &[Bytes] {
        &self.pieces
    }

    fn first_bytes(&self) -> &[u8] {
        self.pieces.first().map_or(&[], |piece| piece)
    }

    #[cfg(test)]
    pub fn to_vec(&self) -> Vec<u8> {
        self.pieces.concat()
    }
}

impl From<Vec<u8>> for Blob {
    fn from(bytes: Vec<u8>) -> Blob {
        Blob { len: bytes.len(), crc32c: crc32c::crc32c(&bytes), pieces: vec![bytes.into()] }
    }
}

/// Collects a [`Blob`] in pieces of `PIECE_BYTES`, so that nothing is ever moved to make room.
#[derive(Default)]
pub struct BlobWriter {
    blob: Blob,
    /// The piece being filled; its length is `PIECE_BYTES` or, before the first write, zero.
    piece: Vec<u8>,
    filled: usize,
}

impl BlobWriter {
    pub fn written(&self) -> usize {
        self.blob.len + self.filled
    }

    /// Where the next bytes go: never less than three bytes, what four base64 symbols decode to.
    pub fn room(&mut self) -> &mut [u8] {
        if self.piece.len() - self.filled < 3 {
            self.seal();
            self.piece = vec![0; PIECE_BYTES];
        }
        &mut self.piece[self.filled..]
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
        let mut piece = std::mem::take(&mut self.piece);
        piece.truncate(std::mem::take(&mut self.filled));
        if piece.is_empty() {
            return;
        }
        piece.shrink_to_fit();
        self.blob.len += piece.len();
        self.blob.crc32c = crc32c::crc32c_append(self.blob.crc32c, &piece);
        self.blob.pieces.push(piece.into());
    }
}

/// A multiple of three: a piece is then filled to its last byte by whole groups of base64.
const PIECE_BYTES: usize = 96 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(bytes: &[u8]) -> Blob {
        bytes.to_vec().into()
    }

    #[test]
    fn the_type_follows_the_first_bytes() {
        for (bytes, format) in [
            (&b"\x89PNG\r\n\x1a\nrest"[..], Some(Format::Png)),
            (b"\xff\xd8\xff\xe0rest", Some(Format::Jpeg)),
            (b"RIFF\x10\0\0\0WEBPVP8 ", Some(Format::Webp)),
            (b"RIFF\x10\0\0\0WAVE", None),
            (b"<html>", None),
            (b"", None),
        ] {
            assert_eq!(Format::of(blob(bytes).first_bytes()), format);
        }
    }

    #[test]
    fn what_is_written_in_any_portions_is_what_is_read() {
        let bytes: Vec<u8> = (0..3 * PIECE_BYTES + 100).map(|i| (i * 7) as u8).collect();
        for portion in [3, 1000, 96_000, PIECE_BYTES] {
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
