// SPDX-License-Identifier: GPL-2.0-only
//! The PC's battery-backed clock, read once at boot.

use core::sync::atomic::{AtomicU64, Ordering::*};

use x86_64::instructions::port::Port;

use super::clock;

fn cmos(register: u8) -> u8 {
    // SAFETY: index and data port of the CMOS clock. Bit 7 of the index would switch NMIs off.
    unsafe {
        Port::<u8>::new(0x70).write(register & 0x7f);
        Port::<u8>::new(0x71).read()
    }
}

/// Days from 1970-01-01 to a date of the Gregorian calendar. Counts years from March, so that the
/// leap day is a year's last.
fn days(year: u64, month: u64, day: u64) -> u64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap_days = year / 4 - year / 100 + year / 400;
    // 719469 days from March 1 of year 0 to 1970-01-01, and the first day of a month is day 1.
    year * 365 + leap_days + (153 * month + 2) / 5 + day - 719_469
}

/// Seconds since 1970, UTC, as QEMU sets the clock by default.
fn unix_time() -> u64 {
    // Two equal readings: none of them was taken while the clock was being updated.
    let read = || [0u8, 2, 4, 7, 8, 9, 0x32].map(cmos);
    let mut now = read();
    for _ in 0..100 {
        let again = read();
        if cmos(0x0a) & 0x80 == 0 && again == now {
            break;
        }
        now = again;
    }
    let binary = cmos(0x0b) & 4 != 0;
    let [sec, min, hour, day, month, year, century] =
        now.map(|v| u64::from(if binary { v } else { (v >> 4) * 10 + (v & 15) }));
    let century = if (19..=21).contains(&century) { century } else { 20 };
    days(century * 100 + year, month.clamp(1, 12), day.max(1)) * 86400 + hour * 3600 + min * 60 + sec
}

/// [`unix_time`] at boot, in nanoseconds.
static BOOT_TIME_NS: AtomicU64 = AtomicU64::new(0);

/// Reads the clock. Called once, when [`crate::arch::clock`] runs.
pub(crate) fn init() {
    BOOT_TIME_NS.store((unix_time() * 1_000_000_000).saturating_sub(clock::now_ns()), Relaxed);
}

/// Nanoseconds from 1970 to the moment when [`clock::now_ns`] was 0.
pub(crate) fn boot_time_ns() -> u64 {
    BOOT_TIME_NS.load(Relaxed)
}
