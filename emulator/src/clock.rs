//! The time that responses show, and its formats.

use std::sync::atomic::{AtomicI64, Ordering};

use time::{Duration, OffsetDateTime};

/// The system's clock, moved by an offset.
#[derive(Default)]
pub(crate) struct Clock {
    offset_ms: AtomicI64,
}

impl Clock {
    pub fn with_offset(ms: i64) -> Self {
        Self { offset_ms: AtomicI64::new(ms) }
    }

    pub fn now(&self) -> OffsetDateTime {
        OffsetDateTime::now_utc() + Duration::milliseconds(self.offset_ms.load(Ordering::Relaxed))
    }

    pub fn advance(&self, ms: i64) {
        self.offset_ms.fetch_add(ms, Ordering::Relaxed);
    }
}

/// A time such as `2026-03-01T12:00:00.000Z`.
pub(crate) fn rfc3339(at: OffsetDateTime) -> String {
    let (date, millisecond) = (at.date(), at.millisecond());
    let (hour, minute, second) = at.to_hms();
    format!("{date}T{hour:02}:{minute:02}:{second:02}.{millisecond:03}Z")
}

/// A time in the format of the header `Date`.
pub(crate) fn http_date(at: OffsetDateTime) -> String {
    let (weekday, month) = (at.weekday().to_string(), at.month().to_string());
    let (weekday, month) = (&weekday[..3], &month[..3]);
    let (hour, minute, second) = at.to_hms();
    let (day, year) = (at.day(), at.year());
    format!("{weekday}, {day:02} {month} {year} {hour:02}:{minute:02}:{second:02} GMT")
}
