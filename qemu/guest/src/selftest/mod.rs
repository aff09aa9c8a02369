// SPDX-License-Identifier: GPL-2.0-only
//! Tests of the kernel itself, chosen on the kernel command line:
//!
//! | word | does | QEMU's status |
//! |---|---|---|
//! | `selftest` | threads, then every disk: write, read back, measure. Overwrites the disks! | 33, or 35 |
//! | `selftest=bench:DEPTH:IOS` | only measures, on the first disk | 33 |
//! | `selftest=panic` | panics on all CPUs at once | 37 |
//! | `selftest=fault` | reads through a null pointer | 39 |
//! | `selftest=overflow` | overflows a thread's stack | 39 |
//! | `selftest=hang` | spins on one CPU and waits on the others, for the NMI to come | 39 |

use core::sync::atomic::{AtomicU32, Ordering::*};

use ext4_dio_protocol::ExitCode;
use kernel_shim::{pr_err, pr_info, sched};

use crate::{arch::percpu, virtio};

mod disk;
mod threads;

/// What went wrong, for people.
type Outcome = Result<(), alloc::string::String>;

/// Runs what `which` names.
pub(crate) fn run(which: &str) -> ExitCode {
    pr_info!("{which}");
    match which {
        "selftest" => {}
        "selftest=panic" => panic_everywhere(),
        "selftest=fault" => null_pointer(),
        "selftest=overflow" => overflow_a_stack(),
        "selftest=hang" => hang(),
        _ if which.starts_with("selftest=bench:") => {
            let mut numbers = which.split(':').skip(1).map_while(|n| n.parse::<u64>().ok());
            let (Some(depth), Some(ios), Some(d)) = (numbers.next(), numbers.next(), virtio::disks().first()) else {
                pr_err!("bench wants depth, number of I/Os and a disk");
                return ExitCode::Failed;
            };
            return finish(disk::bench(&d.bdev, depth as usize, ios));
        }
        _ => {
            pr_err!("there is no {which}");
            return ExitCode::Failed;
        }
    }
    let mut outcome = threads::run();
    for (i, d) in virtio::disks().iter().enumerate() {
        outcome = outcome.and_then(|()| disk::run(i, d));
    }
    finish(outcome)
}

fn finish(outcome: Outcome) -> ExitCode {
    match outcome {
        Ok(()) => {
            pr_info!("selftest passed");
            ExitCode::Success
        }
        Err(why) => {
            pr_err!("selftest failed: {why}");
            ExitCode::Failed
        }
    }
}

/// Lets a thread on every CPU call `f` as nearly at once as it goes.
fn on_all_cpus(name: &'static str, f: fn(u32)) {
    static READY: AtomicU32 = AtomicU32::new(0);
    let n = percpu::nr_cpus();
    for cpu in 0..n {
        let thread = move || {
            READY.fetch_add(1, SeqCst);
            while READY.load(SeqCst) < n {
                core::hint::spin_loop();
            }
            f(cpu);
        };
        match sched::spawn_on(cpu, name, thread) {
            Ok(thread) => drop(thread),
            Err(e) => pr_err!("spawn: {e:?}"),
        }
    }
    loop {
        sched::park();
    }
}

fn panic_everywhere() {
    on_all_cpus("panics", |cpu| panic!("on purpose, on CPU {cpu}"));
}

fn null_pointer() {
    let p = core::hint::black_box(16usize);
    // SAFETY: there is none: the test is that this faults.
    let value = unsafe { core::ptr::with_exposed_provenance::<u64>(p).read_volatile() };
    pr_err!("read {value} through a null pointer");
}

fn overflow_a_stack() {
    #[expect(unconditional_recursion, reason = "the test is that the guard page ends it")]
    fn deeper(n: u64) -> u64 {
        let mut frame = [n; 32];
        core::hint::black_box(&mut frame);
        deeper(n + 1) + frame[3]
    }
    match sched::spawn("deep", || {
        core::hint::black_box(deeper(0));
    }) {
        Ok(thread) => thread.join(),
        Err(e) => pr_err!("spawn: {e:?}"),
    }
}

fn hang() {
    on_all_cpus("hangs", |cpu| {
        if cpu == 0 {
            loop {
                core::hint::spin_loop();
            }
        }
        loop {
            sched::park();
        }
    });
}
