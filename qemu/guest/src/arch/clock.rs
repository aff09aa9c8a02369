// SPDX-License-Identifier: GPL-2.0-only
//! The clock is the time-stamp counter, the alarm is the local APIC's timer. Their frequencies come
//! from CPUID where it tells them (KVM), else from comparing them with the HPET or the ACPI PM timer.

use core::{
    arch::x86_64::_rdtsc,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::*},
};

use x86_64::instructions::port::PortReadOnly;

use super::{apic, firmware::Firmware};

/// Ticks of the time-stamp counter per second.
static TSC_HZ: AtomicU64 = AtomicU64::new(1_000_000_000);
/// Nanoseconds per tick, times 2^32.
static NS_PER_TICK: AtomicU64 = AtomicU64::new(1 << 32);
/// The counter at boot.
static TSC_BASE: AtomicU64 = AtomicU64::new(0);
/// Ticks of the local timer per nanosecond, times 2^32.
static TIMER_PER_NS: AtomicU64 = AtomicU64::new(1 << 32);
static TSC_DEADLINE: AtomicBool = AtomicBool::new(false);

/// How long the comparison runs.
const CALIBRATION_NS: u64 = 5_000_000;

/// The time-stamp counter.
#[inline(always)]
pub(crate) fn rdtsc() -> u64 {
    // SAFETY: every x86-64 CPU has it.
    unsafe { _rdtsc() }
}

/// Ticks of [`rdtsc`] per second.
pub(crate) fn tsc_hz() -> u64 {
    TSC_HZ.load(Relaxed)
}

fn scale(value: u64, factor: u64) -> u64 {
    ((u128::from(value) * u128::from(factor)) >> 32) as u64
}

/// Nanoseconds since boot.
#[inline]
pub(crate) fn now_ns() -> u64 {
    ns_at(rdtsc())
}

/// Nanoseconds since boot when the counter was `tsc`; 0 for what was before.
#[inline]
pub(crate) fn ns_at(tsc: u64) -> u64 {
    scale(tsc.saturating_sub(TSC_BASE.load(Relaxed)), NS_PER_TICK.load(Relaxed))
}

/// A clock whose frequency is known.
enum Reference {
    /// Main counter and its period in femtoseconds.
    Hpet { base: usize, period_fs: u64 },
    /// 3.579545 MHz, 24 bits.
    PmTimer { port: u16 },
}

impl Reference {
    fn find(firmware: &Firmware) -> Self {
        if let Some(base) = firmware.hpet {
            let p = core::ptr::with_exposed_provenance_mut::<u64>(base);
            // SAFETY: ACPI says that the HPET's registers are there; firmware.rs mapped them. Capabilities
            // at 0, configuration at 0x10, of which bit 0 lets the counter run.
            let period_fs = unsafe {
                p.add(2).write_volatile(p.add(2).read_volatile() | 1);
                p.read_volatile() >> 32
            };
            if period_fs != 0 {
                return Self::Hpet { base, period_fs };
            }
        }
        match firmware.pm_timer {
            Some(port) => Self::PmTimer { port },
            None => panic!("ACPI names neither an HPET nor a PM timer"),
        }
    }

    fn read(&self) -> u64 {
        match self {
            // SAFETY: as above; 0xf0 is the main counter.
            Self::Hpet { base, .. } => unsafe {
                core::ptr::with_exposed_provenance::<u64>(base + 0xf0).read_volatile()
            },
            // SAFETY: ACPI says that the PM timer is there, and reading it changes nothing.
            Self::PmTimer { port } => u64::from(unsafe { PortReadOnly::<u32>::new(*port).read() } & 0xff_ffff),
        }
    }

    fn ns_between(&self, start: u64, end: u64) -> u64 {
        match self {
            Self::Hpet { period_fs, .. } => {
                ((u128::from(end.wrapping_sub(start)) * u128::from(*period_fs)) / 1_000_000) as u64
            }
            Self::PmTimer { .. } => (end.wrapping_sub(start) & 0xff_ffff) * 1_000_000_000 / 3_579_545,
        }
    }

    /// Reference, counter and timer read as close together as they get in a few attempts: a
    /// virtual CPU may be off its host CPU at any time.
    fn sample(&self) -> (u64, u64, u32) {
        (0..8)
            .map(|_| {
                let before = rdtsc();
                let (reference, timer) = (self.read(), apic::timer_elapsed());
                let after = rdtsc();
                (after - before, (reference, before + (after - before) / 2, timer))
            })
            .min_by_key(|(width, _)| *width)
            .map_or((0, 0, 0), |(_, sample)| sample)
    }
}

/// Spins for a while without looking at a clock: each look costs a trip out of the virtual CPU.
fn spin(rounds: u32) {
    for i in 0..rounds {
        core::hint::black_box(i);
    }
}

/// Frequencies of counter and timer by CPUID: leaf 0x15, or the leaf hypervisors put at 0x40000010.
fn told_by_cpuid() -> Option<(u64, u64)> {
    let cpuid = raw_cpuid::CpuId::new();
    let h = cpuid.get_hypervisor_info()?;
    Some((u64::from(h.tsc_frequency()?) * 1000, u64::from(h.apic_frequency()?) * 1000))
        .filter(|(t, a)| *t > 0 && *a > 0)
}

/// Finds the frequencies. Called once, on CPU 0, with its APIC on.
pub(crate) fn calibrate(firmware: &Firmware) {
    TSC_BASE.store(rdtsc(), Relaxed);
    let (tsc_hz, timer_hz) = told_by_cpuid().unwrap_or_else(|| {
        let reference = Reference::find(firmware);
        apic::timer_free_run();
        let start = reference.sample();
        let ns = loop {
            spin(10_000);
            let ns = reference.ns_between(start.0, reference.read());
            if ns >= CALIBRATION_NS {
                break ns;
            }
        };
        let end = reference.sample();
        let ns = reference.ns_between(start.0, end.0).max(ns);
        let per_second = |ticks: u64| (u128::from(ticks) * 1_000_000_000 / u128::from(ns)) as u64;
        (per_second(end.1 - start.1), per_second(u64::from(end.2 - start.2)))
    });
    assert!(tsc_hz > 0 && timer_hz > 0, "a clock stands still");
    TSC_HZ.store(tsc_hz, Relaxed);
    kernel_shim::sched::bare::set_tsc_hz(tsc_hz);
    NS_PER_TICK.store(((1_000_000_000u128 << 32) / u128::from(tsc_hz)) as u64, Relaxed);
    TIMER_PER_NS.store(((u128::from(timer_hz) << 32) / 1_000_000_000) as u64, Relaxed);
    let deadline = raw_cpuid::CpuId::new().get_feature_info().is_some_and(|f| f.has_tsc_deadline());
    TSC_DEADLINE.store(deadline, Relaxed);
}

/// Prepares the alarm of the CPU this runs on.
pub(crate) fn init_alarm() {
    apic::timer_mode(TSC_DEADLINE.load(Relaxed));
}

/// Lets the timer vector come on this CPU once [`now_ns`] has reached `deadline_ns`, perhaps earlier.
pub(crate) fn set_alarm(deadline_ns: u64) {
    let delta = deadline_ns.saturating_sub(now_ns());
    if TSC_DEADLINE.load(Relaxed) {
        let ticks = (u128::from(delta) * u128::from(tsc_hz()) / 1_000_000_000) as u64;
        apic::timer_at(rdtsc().saturating_add(ticks).max(1));
    } else {
        apic::timer_after(scale(delta, TIMER_PER_NS.load(Relaxed)).clamp(1, u64::from(u32::MAX)) as u32);
    }
}

/// Busy-waits; for hardware that asks for pauses.
pub(crate) fn delay_us(us: u64) {
    let end = now_ns() + us * 1000;
    while now_ns() < end {
        core::hint::spin_loop();
    }
}
