//! Reads of a TLS connection that end where rustls has little to move.

use hyper_util::client::legacy::connect::{Connected, Connection};
use std::io::{IoSlice, Result};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// A connection whose reads end right after the header of a TLS record, if it carries TLS.
///
/// rustls moves what it has of an incomplete record within its buffer, up to three times for each record, and musl
/// does so byte by byte. Here it gets a whole record at once, and the header that tells the length of the next one.
/// Its buffer stays large while it holds that header.
pub struct TlsReads {
    stream: TcpStream,
    records: Option<Records>,
}

/// The place in a sequence of TLS records (RFC 8446, section 5.1).
#[derive(Default)]
struct Records {
    /// The bytes of the current record that are still to come.
    to_come: usize,
    /// The first `header_len` bytes of the next record's header.
    header: [u8; HEADER_BYTES],
    header_len: usize,
}

impl TlsReads {
    pub fn new(stream: TcpStream, is_tls: bool) -> TlsReads {
        TlsReads { stream, records: is_tls.then(Records::default) }
    }
}

impl Records {
    /// The bytes up to the end of the next header; at least one.
    fn to_next_header(&self) -> usize {
        self.to_come + HEADER_BYTES - self.header_len
    }

    /// Goes on by these bytes, which do not go beyond the next header.
    fn advance(&mut self, bytes: &[u8]) {
        let (record, header) = bytes.split_at(self.to_come.min(bytes.len()));
        self.to_come -= record.len();
        self.header[self.header_len..][..header.len()].copy_from_slice(header);
        self.header_len += header.len();
        if self.header_len == HEADER_BYTES {
            let [_, _, _, high, low] = self.header;
            *self =
                Records { to_come: u16::from_be_bytes([high, low]).into(), ..Records::default() };
        }
    }
}

impl AsyncRead for TlsReads {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<Result<()>> {
        let Self { stream, records } = &mut *self;
        let stream = Pin::new(stream);
        let Some(records) = records else { return stream.poll_read(context, buf) };
        let most = records.to_next_header().min(buf.remaining());
        let mut part = ReadBuf::new(buf.initialize_unfilled_to(most));
        ready!(stream.poll_read(context, &mut part))?;
        records.advance(part.filled());
        let read = part.filled().len();
        buf.advance(read);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TlsReads {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl Connection for TlsReads {
    fn connected(&self) -> Connected {
        self.stream.connected()
    }
}

const HEADER_BYTES: usize = 5;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_header_ends_a_read() {
        let lengths = [0, 1, 300, 16_401, usize::from(u16::MAX)];
        let record = |len: usize| {
            let [high, low] = (len as u16).to_be_bytes();
            [vec![23, 3, 3, high, low], vec![9; len]].concat()
        };
        let sent = lengths.map(record).concat();
        let mut expected = Vec::new();
        let mut start = 0;
        for len in lengths {
            expected.push(start + HEADER_BYTES);
            start += HEADER_BYTES + len;
        }
        expected.push(sent.len());
        for at_most in [1, 4, 5, 6, 4096, usize::MAX] {
            let (mut records, mut ends) = (Records::default(), vec![0]);
            while let Some(&end) = ends.last().filter(|&&end| end < sent.len()) {
                let most = records.to_next_header().min(sent.len() - end).min(at_most);
                records.advance(&sent[end..end + most]);
                ends.push(end + most);
            }
            assert!(expected.iter().all(|end| ends.contains(end)), "{at_most}: {ends:?}");
            assert!(at_most < usize::MAX || ends[1..] == expected, "{ends:?}");
        }
    }
}
