// SPDX-License-Identifier: GPL-2.0-only
//! Time: [`Ktime`], a signed number of nanoseconds, and [`Timespec64`], which inodes have.

use core::ops::{Add, Sub};

use crate::sched;

/// Nanoseconds in a second.
pub const NSEC_PER_SEC: i64 = 1_000_000_000;
/// Nanoseconds in a millisecond.
pub const NSEC_PER_MSEC: i64 = 1_000_000;

/// A moment or a span, in nanoseconds. Sums saturate.
#[doc(alias = "ktime_t")]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Ktime(i64);

impl Ktime {
    /// That many nanoseconds.
    pub const fn from_ns(ns: i64) -> Ktime {
        Ktime(ns)
    }

    /// The number of nanoseconds.
    pub const fn to_ns(self) -> i64 {
        self.0
    }

    /// Whole seconds, rounded down, and the rest.
    #[doc(alias = "ktime_to_timespec64")]
    pub const fn to_timespec64(self) -> Timespec64 {
        // The rest lies between 0 and a second, which fits.
        Timespec64 { tv_sec: self.0.div_euclid(NSEC_PER_SEC), tv_nsec: self.0.rem_euclid(NSEC_PER_SEC) as u32 }
    }
}

impl Add for Ktime {
    type Output = Ktime;

    fn add(self, other: Ktime) -> Ktime {
        Ktime(self.0.saturating_add(other.0))
    }
}

impl Sub for Ktime {
    type Output = Ktime;

    fn sub(self, other: Ktime) -> Ktime {
        Ktime(self.0.saturating_sub(other.0))
    }
}

/// A moment: seconds since 1970, and nanoseconds after that second. Ordered by time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Timespec64 {
    /// Seconds, negative before 1970.
    pub tv_sec: i64,
    /// Nanoseconds, less than a second.
    pub tv_nsec: u32,
}

impl Timespec64 {
    /// The moment, cut off at the ends of what [`Ktime`] can hold (the years 1677 and 2262).
    #[doc(alias = "timespec64_to_ktime")]
    pub const fn to_ktime(self) -> Ktime {
        Ktime(self.tv_sec.saturating_mul(NSEC_PER_SEC).saturating_add(self.tv_nsec as i64))
    }
}

/// A back end's nanoseconds, of which 63 bits last for 292 years.
fn ktime(ns: u64) -> Ktime {
    Ktime(i64::try_from(ns).unwrap_or(i64::MAX))
}

/// Now, on a clock that never goes backwards. Any context.
pub fn ktime_get() -> Ktime {
    ktime(sched::now_ns())
}

/// Now, since 1970. Any context.
pub fn ktime_get_real() -> Ktime {
    ktime(sched::real_ns())
}

/// [`ktime_get_real`] as inodes keep it.
pub fn ktime_get_real_ts64() -> Timespec64 {
    ktime_get_real().to_timespec64()
}

/// The coarse clock steps by 2 to this power nanoseconds at most: about 4 ms, a timer tick of a kernel built
/// with HZ=250, and a shift where that would be a division.
pub(crate) const TICK_SHIFT: u32 = 22;

/// The number of the current tick of [`ktime_get_coarse_real`], never 0: as long as it is the same that
/// clock has not moved. Cheaper than any other reading of time. Any context.
#[inline]
pub fn coarse_tick() -> u64 {
    sched::coarse_tick()
}

/// The moment at which the current tick began. What several calls within one tick return is equal, so
/// that what has this time already need not be changed again. Any context.
#[doc(alias = "ktime_get_coarse_real_ts64")]
pub fn ktime_get_coarse_real() -> Timespec64 {
    ktime(sched::coarse_real_ns()).to_timespec64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn to_seconds_and_back() {
        for (ns, tv_sec, tv_nsec) in [
            (0, 0, 0),
            (1, 0, 1),
            (-1, -1, 999_999_999),
            (NSEC_PER_SEC, 1, 0),
            (-NSEC_PER_SEC, -1, 0),
            (i64::MAX, 9_223_372_036, 854_775_807),
            (i64::MIN, -9_223_372_037, 145_224_192),
        ] {
            let time = Timespec64 { tv_sec, tv_nsec };
            assert_eq!(Ktime::from_ns(ns).to_timespec64(), time);
            if ns != i64::MIN {
                assert_eq!(time.to_ktime(), Ktime::from_ns(ns));
            }
        }
        assert_eq!(Timespec64 { tv_sec: i64::MAX, tv_nsec: 0 }.to_ktime(), Ktime::from_ns(i64::MAX));
        assert_eq!(Ktime::from_ns(i64::MAX) + Ktime::from_ns(1), Ktime::from_ns(i64::MAX));
        assert_eq!(Ktime::from_ns(5) - Ktime::from_ns(7), Ktime::from_ns(-2));
    }

    #[test]
    fn coarse_clock_stands_still_within_a_tick() {
        let mut steps = 0;
        while steps < 3 {
            let (tick, time) = (coarse_tick(), ktime_get_coarse_real());
            let (tick_after, time_after) = (coarse_tick(), ktime_get_coarse_real());
            assert_ne!(tick, 0);
            assert!(time <= ktime_get_real_ts64());
            if coarse_tick() == tick {
                assert_eq!((tick, time), (tick_after, time_after));
            } else {
                steps += 1;
            }
        }
    }

    #[test]
    fn clocks_run() {
        let before = ktime_get();
        while ktime_get() == before {}
        assert!(ktime_get() > before);
        // 2020-01-01: the machine's clock is set.
        assert!(ktime_get_real_ts64().tv_sec > 1_577_836_800);
    }
}
