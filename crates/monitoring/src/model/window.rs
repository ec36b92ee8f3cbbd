//! Windows: slices of event time along the calendar, in UTC.

use chrono::{DateTime, Datelike as _, Duration, Months, NaiveDate, NaiveTime, Timelike as _, Utc};
use modelyard_common::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::error::{Error, Result};

/// How long the windows of a monitor are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = MonitorWindowLength)]
pub enum Length {
    /// From a full hour to the next.
    Hour,
    /// From midnight to midnight.
    Day,
    /// From Monday to Monday.
    Week,
    /// From the first of a month to the next.
    Month,
}

/// A slice of event time: `start` belongs to it, `end` does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[schema(as = WindowSpan)]
pub struct Span {
    /// Where it begins.
    pub start: Timestamp,
    /// Where it ends.
    pub end: Timestamp,
}

impl Span {
    /// Whether nothing is expected in it any more: the watermark passed its end.
    #[must_use]
    pub fn is_closed(&self, watermark: Option<Timestamp>) -> bool {
        watermark.is_some_and(|watermark| watermark >= self.end)
    }

    /// The first and the last date that it touches.
    #[must_use]
    pub fn dates(&self) -> (NaiveDate, NaiveDate) {
        let last = Timestamp::from_micros(self.end.as_micros() - 1).max(self.start);
        (self.start.to_datetime().date_naive(), last.to_datetime().date_naive())
    }
}

impl Length {
    /// The window that a point in time lies in.
    #[must_use]
    pub fn span_of(self, time: Timestamp) -> Span {
        let time = time.to_datetime();
        let midnight = |date: NaiveDate| date.and_time(NaiveTime::MIN).and_utc();
        let date = time.date_naive();
        let start = match self {
            Self::Hour => midnight(date) + Duration::hours(i64::from(time.hour())),
            Self::Day => midnight(date),
            Self::Week => midnight(date) - Duration::days(i64::from(date.weekday().num_days_from_monday())),
            Self::Month => midnight(date) - Duration::days(i64::from(date.day0())),
        };
        Span {
            start: Timestamp::from(start),
            end: Timestamp::from(self.next(start)),
        }
    }

    fn next(self, start: DateTime<Utc>) -> DateTime<Utc> {
        match self {
            Self::Hour => start + Duration::hours(1),
            Self::Day => start + Duration::days(1),
            Self::Week => start + Duration::days(7),
            Self::Month => start + Months::new(1),
        }
    }

    /// The windows that the times from `first` to `last` lie in, in order.
    pub fn spans(self, first: Timestamp, last: Timestamp) -> impl Iterator<Item = Span> {
        let begin = self.span_of(first);
        std::iter::successors(Some(begin), move |span| {
            // At the end of representable time the next window would be this one again.
            Some(self.span_of(span.end)).filter(|next| next.start > span.start)
        })
        .take_while(move |span| span.start <= last)
    }

    /// Reads the start of a window: a point in time, a date, or a month such as `2013-03`.
    ///
    /// # Errors
    /// The text is none of these.
    pub fn read_start(text: &str) -> Result<Timestamp> {
        let complete = match text.len() {
            7 => format!("{text}-01T00:00:00Z"),
            10 => format!("{text}T00:00:00Z"),
            _ => text.to_owned(),
        };
        complete.parse().map_err(|_| {
            let shown: String = text.chars().take(64).flat_map(char::escape_default).collect();
            Error::request(format!(
                "`{shown}` is not the start of a window: write it as in 2013-03-01T00:00:00Z, 2013-03-01 or 2013-03"
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn windows_follow_the_calendar() {
        let time = at("2013-03-14T15:09:26Z");
        let expected = [
            (Length::Hour, "2013-03-14T15:00:00Z", "2013-03-14T16:00:00Z"),
            (Length::Day, "2013-03-14T00:00:00Z", "2013-03-15T00:00:00Z"),
            (Length::Week, "2013-03-11T00:00:00Z", "2013-03-18T00:00:00Z"),
            (Length::Month, "2013-03-01T00:00:00Z", "2013-04-01T00:00:00Z"),
        ];
        for (length, start, end) in expected {
            let span = length.span_of(time);
            assert_eq!((span.start, span.end), (at(start), at(end)));
        }
        let (first, last) = Length::Month.span_of(time).dates();
        assert_eq!(
            (first.to_string(), last.to_string()),
            ("2013-03-01".to_owned(), "2013-03-31".to_owned())
        );
    }

    #[test]
    fn a_window_closes_when_the_watermark_reaches_its_end() {
        let span = Length::Month.span_of(at("2013-12-31T23:59:59.999999Z"));
        assert_eq!(span.end, at("2014-01-01T00:00:00Z"));
        assert!(!span.is_closed(None));
        assert!(!span.is_closed(Some(at("2013-12-31T23:59:59.999999Z"))));
        assert!(span.is_closed(Some(span.end)));
    }

    #[test]
    fn starts_are_read_in_three_forms() {
        for text in ["2013-03-01T00:00:00Z", "2013-03-01", "2013-03"] {
            assert_eq!(Length::read_start(text).unwrap(), at("2013-03-01T00:00:00Z"));
        }
        for text in ["", "march", "2013-13", "2013-3"] {
            assert!(Length::read_start(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn windows_tile_time(micros in -2_000_000_000_000_000_i64..4_000_000_000_000_000, hours in 0_i64..2000) {
            let first = Timestamp::from_micros(micros);
            let last = Timestamp::from_micros(micros + hours * 3_600_000_000);
            for length in [Length::Hour, Length::Day, Length::Week, Length::Month] {
                let spans: Vec<Span> = length.spans(first, last).collect();
                prop_assert!(spans[0].start <= first && first < spans[0].end);
                let end = spans[spans.len() - 1];
                prop_assert!(end.start <= last && last < end.end);
                prop_assert!(spans.windows(2).all(|pair| pair[0].end == pair[1].start));
            }
        }
    }
}
