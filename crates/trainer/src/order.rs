//! The order of time: splitting data, and bringing training rows into one order whatever order they came in.

use std::cmp::Ordering;
use std::time::Duration;

use arrow::array::{Array, ArrayRef, AsArray, UInt32Array};
use arrow::compute::{CastOptions, cast_with_options, take_record_batch};
use arrow::datatypes::{DataType, TimeUnit, TimestampMicrosecondType};
use arrow::record_batch::RecordBatch;

use crate::error::{Error, Result, column};
use crate::table::{Values, column_of};
use crate::target::Target;

/// Rows at most: row numbers are 32 bits wide.
pub(crate) const MAX_ROWS: usize = 1 << 31;

/// Splits the rows into those before the last slice of time and the slice: all rows later than the latest time minus
/// `last`. Both parts are sorted by time; rows of the same time keep their order.
///
/// The time column has RFC 3339 strings, timestamps or dates, none missing.
pub fn split_by_time(data: &RecordBatch, time_column: &str, last: Duration) -> Result<(RecordBatch, RecordBatch)> {
    let times = read_times(data, time_column)?;
    let mut rows: Vec<u32> = (0..times.len() as u32).collect();
    rows.sort_by_key(|&row| times[row as usize]);
    let Some(&latest) = rows.last() else {
        return Err(Error::Data(
            "the dataset has no rows: nothing can be split off".to_owned(),
        ));
    };
    let span = i64::try_from(last.as_micros()).unwrap_or(i64::MAX);
    let limit = times[latest as usize].saturating_sub(span);
    let begin = rows.partition_point(|&row| times[row as usize] <= limit);
    for (empty, part) in [(begin == 0, "before"), (begin == rows.len(), "in")] {
        if empty {
            let reason = format!(
                "has no row {part} the last {} seconds: choose another length of the slice",
                last.as_secs_f64()
            );
            return Err(column(time_column, reason));
        }
    }
    let slice = rows.split_off(begin);
    Ok((pick(data, rows)?, pick(data, slice)?))
}

fn pick(data: &RecordBatch, rows: Vec<u32>) -> Result<RecordBatch> {
    take_record_batch(data, &UInt32Array::from(rows))
        .map_err(|error| Error::Internal(format!("rows cannot be selected: {error}")))
}

/// Microseconds since 1970 in UTC, one a row.
pub(crate) fn read_times(data: &RecordBatch, name: &str) -> Result<Vec<i64>> {
    let array = column_of(data, name, "the time column")?;
    if array.len() > MAX_ROWS {
        return Err(Error::Data(format!(
            "the dataset has {} rows: at most {MAX_ROWS} are supported",
            array.len()
        )));
    }
    match array.data_type() {
        DataType::Utf8
        | DataType::LargeUtf8
        | DataType::Utf8View
        | DataType::Dictionary(_, _)
        | DataType::Timestamp(_, _)
        | DataType::Date32
        | DataType::Date64 => {}
        other => {
            let reason = format!("has type {other}: times are RFC 3339 strings, timestamps or dates");
            return Err(column(name, reason));
        }
    }
    let times = to_microseconds(name, array)?;
    if times.null_count() == 0 {
        return Ok(times.as_primitive::<TimestampMicrosecondType>().values().to_vec());
    }
    let row = (0..times.len()).find(|&row| times.is_null(row)).unwrap_or_default();
    let what = if array.is_null(row) {
        "is missing"
    } else {
        "is no RFC 3339 time"
    };
    Err(column(name, format!("{what} in row {row}: every row needs its time")))
}

fn to_microseconds(name: &str, array: &ArrayRef) -> Result<ArrayRef> {
    // Safe: what cannot be read becomes null, so that the row can be named.
    let options = CastOptions {
        safe: true,
        ..CastOptions::default()
    };
    let cast = |array: &ArrayRef, to: &DataType| {
        cast_with_options(array, to, &options)
            .map_err(|error| column(name, format!("cannot be read as times: {error}")))
    };
    let zone = match array.data_type() {
        // A time with another zone is an instant all the same; naive ones count as UTC.
        DataType::Timestamp(_, zone) => zone.clone(),
        DataType::Dictionary(_, _) => {
            let plain = cast(array, &DataType::Utf8)?;
            return to_microseconds(name, &plain);
        }
        DataType::Date32 | DataType::Date64 => None,
        _ => Some("UTC".into()),
    };
    cast(array, &DataType::Timestamp(TimeUnit::Microsecond, zone))
}

/// Row numbers sorted by time. Rows of the same time are sorted by everything that training sees of them, so that the
/// order they came in makes no difference.
pub(crate) fn canonical_order(times: &[i64], columns: &[Values], target: &Target) -> Vec<u32> {
    let mut rows: Vec<u32> = (0..times.len() as u32).collect();
    rows.sort_unstable_by(|&a, &b| {
        let (a, b) = (a as usize, b as usize);
        times[a]
            .cmp(&times[b])
            .then_with(|| compare_rows(columns, target, a, b))
    });
    rows
}

fn compare_rows(columns: &[Values], target: &Target, a: usize, b: usize) -> Ordering {
    for column in columns {
        let order = match column {
            Values::Numbers(numbers) => numbers[a].total_cmp(&numbers[b]),
            Values::Texts(texts) => texts.codes[a].cmp(&texts.codes[b]),
        };
        if order.is_ne() {
            return order;
        }
    }
    match target {
        Target::Classes { codes, .. } => codes[a].cmp(&codes[b]),
        Target::Numbers(numbers) => numbers[a].total_cmp(&numbers[b]),
    }
}

/// Where the last slice with at least `share` of the rows begins. With `times` (sorted) no two rows of the same time
/// end on different sides.
pub(crate) fn slice_begin(rows: usize, share: f64, times: Option<&[i64]>) -> Option<usize> {
    let slice = ((rows as f64 * share).ceil() as usize).clamp(1, rows);
    let begin = rows - slice;
    let Some(times) = times else {
        return (begin > 0).then_some(begin);
    };
    let boundary = times[begin];
    let first = times.partition_point(|&time| time < boundary);
    let begin = if first > 0 {
        first
    } else {
        // The boundary lies within the very first time: the slice begins after it.
        times.partition_point(|&time| time <= boundary)
    };
    (begin > 0 && begin < rows).then_some(begin)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Date32Array, Float64Array, Int64Array, StringArray, TimestampNanosecondArray};
    use arrow::datatypes::Int64Type;

    use super::*;

    fn batch(times: ArrayRef) -> RecordBatch {
        let ids: ArrayRef = Arc::new(Int64Array::from((0..times.len() as i64).collect::<Vec<_>>()));
        RecordBatch::try_from_iter_with_nullable(vec![("time", times, true), ("id", ids, false)]).unwrap()
    }

    fn ids(data: &RecordBatch) -> Vec<i64> {
        data.column(1).as_primitive::<Int64Type>().values().to_vec()
    }

    #[test]
    fn the_last_hours_are_split_off_in_the_order_of_time() {
        let strings: ArrayRef = Arc::new(StringArray::from(vec![
            "2013-01-02T00:00:00Z",
            "2013-01-01T00:00:00Z",
            "2013-01-01T23:00:00Z",
            "2013-01-02T01:00:00+01:00",
            "2012-12-31T23:59:59.5Z",
        ]));
        let (before, slice) = split_by_time(&batch(strings), "time", Duration::from_hours(1)).unwrap();
        // Exactly one hour before the latest time is not within the last hour.
        assert_eq!(ids(&before), [4, 1, 2]);
        assert_eq!(ids(&slice), [0, 3]);
    }

    #[test]
    fn timestamps_and_dates_are_times() {
        let day = 86_400_000_000_000_i64;
        let stamps: ArrayRef = Arc::new(TimestampNanosecondArray::from(vec![2 * day, 0, day]));
        let (before, slice) = split_by_time(&batch(stamps), "time", Duration::from_hours(24)).unwrap();
        assert_eq!((ids(&before), ids(&slice)), (vec![1, 2], vec![0]));
        let dates: ArrayRef = Arc::new(Date32Array::from(vec![2, 0, 1]));
        assert_eq!(
            read_times(&batch(dates), "time").unwrap(),
            [2 * 86_400_000_000, 0, 86_400_000_000]
        );
    }

    #[test]
    fn bad_times_are_named() {
        let cases: Vec<(ArrayRef, &str)> = vec![
            (
                Arc::new(StringArray::from(vec![Some("2013-01-01T00:00:00Z"), None])),
                "is missing in row 1",
            ),
            (
                Arc::new(StringArray::from(vec!["2013-01-01T00:00:00Z", "soon"])),
                "is no RFC 3339 time in row 1",
            ),
            (Arc::new(Float64Array::from(vec![1.0])), "has type Float64"),
            (
                Arc::new(StringArray::from(vec!["2013-01-01T00:00:00Z"])),
                "has no row before the last 60 seconds",
            ),
            (Arc::new(StringArray::from(Vec::<&str>::new())), "has no rows"),
        ];
        for (times, message) in cases {
            let error = split_by_time(&batch(times), "time", Duration::from_mins(1))
                .unwrap_err()
                .to_string();
            assert!(error.contains(message), "{error}");
        }
        let whole: ArrayRef = Arc::new(Date32Array::from(vec![2, 0, 1]));
        let error = split_by_time(&batch(whole), "time", Duration::ZERO)
            .unwrap_err()
            .to_string();
        assert!(error.contains("has no row in the last 0 seconds"), "{error}");
    }

    #[test]
    fn a_slice_does_not_cut_through_one_time() {
        let times = [1, 1, 2, 2, 2, 3];
        assert_eq!(slice_begin(6, 0.5, Some(&times)), Some(2));
        assert_eq!(slice_begin(6, 0.1, Some(&times)), Some(5));
        // The wanted boundary lies within the first time.
        assert_eq!(slice_begin(6, 0.9, Some(&times)), Some(2));
        assert_eq!(slice_begin(3, 0.5, Some(&[7, 7, 7])), None);
        assert_eq!(slice_begin(10, 0.1, None), Some(9));
        assert_eq!(slice_begin(1, 0.1, None), None);
    }
}
