//! Picture bytes: kept as they were received, typed by their first bytes, counted against a budget.

use bytes::Bytes;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

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

/// What all pictures in transfer may hold together.
///
/// Whoever does not fit waits before reading on. So that those who wait for each other's memory cannot
/// wait for ever, one of them at a time may go over: the most held is the budget and one picture.
#[derive(Debug, Clone)]
pub struct Budget {
    units: Arc<Semaphore>,
    overdraft: Arc<Semaphore>,
    total_units: u32,
}

/// One picture's part of the [`Budget`]; dropping it gives the part back.
#[derive(Debug)]
pub struct Share {
    budget: Budget,
    held: Option<OwnedSemaphorePermit>,
    held_units: u32,
    overdraft: Option<OwnedSemaphorePermit>,
}

impl Budget {
    pub fn new(bytes: usize) -> Budget {
        let total_units = units(bytes).max(1);
        Budget {
            units: Arc::new(Semaphore::new(total_units as usize)),
            overdraft: Arc::new(Semaphore::new(1)),
            total_units,
        }
    }

    /// A share that fits `bytes`, as soon as there is room for it.
    pub async fn share(&self, bytes: usize) -> Share {
        let mut share = Share { budget: self.clone(), held: None, held_units: 0, overdraft: None };
        share.grow_to(bytes).await;
        share
    }
}

impl Share {
    /// Waits until `bytes` fit; returns at once where they do already.
    pub async fn grow_to(&mut self, bytes: usize) {
        let wanted = units(bytes).saturating_sub(self.held_units);
        if wanted == 0 || self.overdraft.is_some() {
            return;
        }
        let more = Arc::clone(&self.budget.units).acquire_many_owned(wanted);
        let overdraft = Arc::clone(&self.budget.overdraft).acquire_owned();
        tokio::select! {
            biased;
            permit = more, if self.held_units + wanted <= self.budget.total_units => {
                self.take(permit.expect("the budget is never closed"), wanted);
            }
            permit = overdraft => self.overdraft = Some(permit.expect("the budget is never closed")),
        }
    }

    fn take(&mut self, permit: OwnedSemaphorePermit, units: u32) {
        self.held_units += units;
        match &mut self.held {
            Some(held) => held.merge(permit),
            held => *held = Some(permit),
        }
    }
}

fn units(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX)
}

/// Shares grow by this much, so that reading does not queue for every piece.
const UNIT_BYTES: usize = 256 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::task::yield_now;

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

    #[tokio::test]
    async fn who_does_not_fit_waits_until_room_is_given_back() {
        let budget = Budget::new(4 * UNIT_BYTES);
        let first = budget.share(3 * UNIT_BYTES).await;
        let _over = budget.share(2 * UNIT_BYTES).await;
        let waiting = tokio::spawn({
            let budget = budget.clone();
            async move { drop(budget.share(2 * UNIT_BYTES).await) }
        });
        yield_now().await;
        assert!(!waiting.is_finished());
        drop(first);
        waiting.await.unwrap();
    }

    #[tokio::test]
    async fn shares_that_wait_for_each_other_finish_one_after_the_other() {
        let budget = Budget::new(2 * UNIT_BYTES);
        let mut shares = Vec::new();
        for _ in 0..2 {
            shares.push(budget.share(UNIT_BYTES).await);
        }
        let growing: Vec<_> = shares
            .into_iter()
            .map(|mut share| tokio::spawn(async move { share.grow_to(10 * UNIT_BYTES).await }))
            .collect();
        for task in growing {
            task.await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_picture_larger_than_the_whole_budget_still_gets_through() {
        let budget = Budget::new(UNIT_BYTES);
        let share = budget.share(100 * UNIT_BYTES).await;
        assert!(share.overdraft.is_some());
    }
}
