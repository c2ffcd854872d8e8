//! Days in a zone.

use chrono::{DateTime, Days, NaiveDate, NaiveTime, TimeDelta, TimeZone as _, Utc};
use chrono_tz::Tz;

/// When a day was over in a zone; where a clock change skips that midnight, an hour later by the clock.
pub fn end_of_day(day: NaiveDate, zone: Tz) -> DateTime<Utc> {
    let midnight = (day + Days::new(1)).and_time(NaiveTime::MIN);
    let later = midnight + TimeDelta::hours(1);
    let found = zone.from_local_datetime(&midnight).earliest().or_else(|| zone.from_local_datetime(&later).earliest());
    found.map_or_else(|| midnight.and_utc(), |at| at.with_timezone(&Utc))
}
