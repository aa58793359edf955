//! Batch requests: several requests in the parts of one `multipart/mixed` body.

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode};
use memchr::memmem;

use crate::body_reader::BodyReader;
use crate::response::Response;

/// One request of a batch.
pub(crate) struct Part {
    pub id: String,
    pub request: Request<BodyReader>,
}

/// The requests of a batch, which have the batch's credentials unless they bring their own.
pub(crate) fn read(headers: &HeaderMap, body: &Bytes) -> Option<Vec<Part>> {
    let content_type = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    let boundary =
        content_type.split(';').find_map(|part| part.trim().strip_prefix("boundary="))?;
    let delimiter = format!("--{}", boundary.trim_matches(['"', '\'']));
    let starts: Vec<usize> = memmem::find_iter(body, delimiter.as_bytes()).collect();
    let parts = starts.windows(2).map(|ends| &body[ends[0] + delimiter.len()..ends[1]]);
    let parts: Option<Vec<Part>> = parts.map(|part| read_part(part, headers)).collect();
    parts.filter(|parts| !parts.is_empty() && parts.len() <= MOST_PARTS)
}

fn read_part(part: &[u8], batch: &HeaderMap) -> Option<Part> {
    let (head, inner) = split_head(part)?;
    let id = head.get("content-id").and_then(|id| id.to_str().ok()).unwrap_or_default();
    let line_end = memmem::find(inner, b"\n")?;
    let mut line = std::str::from_utf8(&inner[..line_end]).ok()?.split_whitespace();
    let mut request = Request::builder().method(line.next()?).uri(line.next()?);
    let (mut headers, body) = split_head(&inner[line_end + 1..])?;
    if let (false, Some(credentials)) =
        (headers.contains_key(AUTHORIZATION), batch.get(AUTHORIZATION))
    {
        headers.insert(AUTHORIZATION, credentials.clone());
    }
    request.headers_mut()?.extend(headers);
    let body = BodyReader::from(Bytes::copy_from_slice(body.trim_ascii_end()));
    Some(Part { id: id.to_owned(), request: request.body(body).ok()? })
}

/// The header lines up to an empty line or the end, and what follows.
fn split_head(bytes: &[u8]) -> Option<(HeaderMap, &[u8])> {
    let mut headers = HeaderMap::new();
    let mut rest = bytes.strip_prefix(b"\r\n").or(bytes.strip_prefix(b"\n")).unwrap_or(bytes);
    loop {
        let (line, after) = match memmem::find(rest, b"\n") {
            Some(end) => (&rest[..end], &rest[end + 1..]),
            None => (rest, &[][..]),
        };
        rest = after;
        let line = std::str::from_utf8(line).ok()?.trim();
        let Some((name, value)) = line.split_once(':') else {
            return line.is_empty().then_some((headers, rest));
        };
        let value = value.trim().parse::<HeaderValue>().ok()?;
        headers.insert(name.parse::<HeaderName>().ok()?, value);
    }
}

/// The responses of a batch, each with the id of its request.
pub(crate) fn write(responses: &[(String, Response)]) -> Response {
    let mut body = Vec::new();
    for (id, response) in responses {
        let id = id.trim_start_matches('<');
        body.extend(
            format!("--{BOUNDARY}\r\nContent-Type: application/http\r\nContent-ID: <response-{id}\r\n\r\n")
                .into_bytes(),
        );
        let reason = response.status.canonical_reason().unwrap_or("Unknown");
        body.extend(format!("HTTP/1.1 {} {reason}\r\n", response.status.as_u16()).into_bytes());
        for (name, value) in &response.headers {
            body.extend([name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
        }
        body.extend(format!("Content-Length: {}\r\n\r\n", response.body.len()).into_bytes());
        body.extend_from_slice(&response.body);
        body.extend_from_slice(b"\r\n");
    }
    body.extend(format!("--{BOUNDARY}--\r\n").into_bytes());
    Response::new(StatusCode::OK, "multipart/mixed; boundary=batch_emulated", body)
}

const BOUNDARY: &str = "batch_emulated";
const MOST_PARTS: usize = 100;
