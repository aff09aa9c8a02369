// SPDX-License-Identifier: GPL-2.0-only
//! What the runner on the host and the guest in QEMU say to each other.
//!
//! * Runner to guest: one [`Plan`], JSON, handed over as the PVH boot module (QEMU's `-initrd`).
//! * Guest to runner: the serial port. A line that starts with [`EVENT_PREFIX`] is one [`Event`]
//!   as JSON; every other line is the guest's log.
//! * Guest to runner, bulk: the debug console (I/O port [`DEBUGCON_PORT`]) carries the tables of
//!   acknowledged generations ([`Event::Table`] says how many bytes follow there, little-endian `u32`s).
//! * Guest's end: it writes an [`ExitCode`] to QEMU's `isa-debug-exit` port.
//!
//! Both sides also share the [`Stamp`] that test data carries.
#![no_std]
#![forbid(unsafe_code)]
extern crate alloc;

use alloc::{string::String, vec::Vec};
use serde::{Deserialize, Serialize};

pub mod errno;
pub mod script;
mod stamp;
pub use script::Script;
pub use stamp::{STAMP_LEN, Stamp, StampError, crc32c};

/// Starts every serial line that is an [`Event`].
pub const EVENT_PREFIX: &str = "@ ";
/// I/O port of QEMU's `isa-debugcon`, for bulk data.
pub const DEBUGCON_PORT: u16 = 0xe9;
/// I/O port of QEMU's `isa-debug-exit` (`iosize=4`). QEMU exits with `code << 1 | 1`.
pub const EXIT_PORT: u16 = 0xf4;

/// What the guest writes to [`EXIT_PORT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ExitCode {
    /// The whole plan ran and nothing failed (QEMU's status 33).
    Success = 0x10,
    /// The plan ended with an error that an [`Event::Failed`] tells (35).
    Failed = 0x11,
    /// A Rust panic, registers and backtrace on the serial port (37).
    Panic = 0x12,
    /// A CPU exception, registers and backtrace on the serial port (39).
    Fault = 0x13,
}

impl ExitCode {
    /// The exit status QEMU ends with for this code.
    pub const fn qemu_status(self) -> i32 {
        ((self as i32) << 1) | 1
    }
}

/// Everything the guest is to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Run one after the other.
    pub steps: Vec<Step>,
    /// Run before them.
    pub script: Option<Script>,
    /// Milliseconds between two [`Event::Progress`] lines.
    pub progress_ms: u64,
    /// Send an [`Event::Table`] for each file that jobs stamped.
    pub tables: bool,
    /// Count instructions: `rdtsc` is QEMU's icount clock, time spent in `hlt` is subtracted.
    pub count_instructions: bool,
}

/// One measured point: its jobs start together, and it ends when the last of them ends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Comes back in this step's events.
    pub id: u32,
    /// For people: job file or point of the default run.
    pub label: String,
    /// Where its I/O goes.
    pub target: Target,
    /// At least one.
    pub jobs: Vec<Job>,
}

/// Where a step's I/O goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Target {
    /// Straight to a disk's block layer, without a file system. Jobs' `filename` is ignored.
    Raw {
        /// 0 is the first virtio-blk function on the PCI bus.
        disk: u32,
    },
    /// Files of the ext4 image on a disk. It is mounted before the step unless it is mounted
    /// with the same options already, and unmounted at the end of the plan or before a step
    /// that needs it otherwise.
    Ext4 {
        /// 0 is the first virtio-blk function on the PCI bus.
        disk: u32,
        /// As `mount -o` takes them.
        options: String,
    },
}

/// What a job's threads do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Rw {
    /// Ascending reads.
    Read,
    /// Ascending writes.
    Write,
    /// Ascending, [`Job::rwmixread`] percent reads.
    ReadWrite,
    /// Reads at random blocks.
    RandRead,
    /// Writes at random blocks.
    RandWrite,
    /// Random blocks, [`Job::rwmixread`] percent reads.
    RandRw,
    /// Ascending: holes are punched in a file, a disk is told to discard.
    Trim,
    /// The same at random blocks.
    RandTrim,
    /// Ascending, each block first trimmed, then written.
    TrimWrite,
}

impl Rw {
    /// Whether any I/O is a read.
    pub fn reads(self) -> bool {
        matches!(self, Rw::Read | Rw::ReadWrite | Rw::RandRead | Rw::RandRw)
    }

    /// Whether any I/O is a write.
    pub fn writes(self) -> bool {
        matches!(self, Rw::Write | Rw::ReadWrite | Rw::RandWrite | Rw::RandRw | Rw::TrimWrite)
    }

    /// Whether any I/O is a trim.
    pub fn trims(self) -> bool {
        matches!(self, Rw::Trim | Rw::RandTrim | Rw::TrimWrite)
    }

    /// Whether the content changes.
    pub fn changes(self) -> bool {
        self.writes() || self.trims()
    }
}

/// fio's `fallocate=`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fallocate {
    /// Nothing: the file grows with what is written.
    #[default]
    None,
    /// `fallocate()`: blocks are allocated, the size is the file's in the end.
    Native,
    /// `posix_fallocate()`, which is the same on ext4.
    Posix,
    /// `fallocate()` with `FALLOC_FL_KEEP_SIZE`: blocks past the end.
    Keep,
    /// `ftruncate()`: the size without blocks, one hole.
    Truncate,
}

/// How a job comes by its file. On a raw disk it makes no difference.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Layout {
    /// It is there, and long enough.
    #[default]
    There,
    /// Should it not be there, it is made, with all of its bytes written.
    Written,
    /// It is removed if it is there, and made anew before each step: without data, as [`Job::fallocate`] says, unless the step
    /// reads, too.
    Fresh,
    /// As [`Layout::Fresh`], but opening it makes it, and nothing else is done to it.
    OnOpen,
    /// It is kept if it is there, and made if not: I/O begins at its end.
    Append,
}

/// Which kind of kiocb a job uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Engine {
    /// fio's `psync`: a synchronous kiocb, one in flight per thread.
    Sync,
    /// fio's `libaio` and `io_uring`: asynchronous kiocbs, [`Job::iodepth`] in flight per thread.
    Async,
}

/// fio's `sync=`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SyncMode {
    /// Neither.
    #[default]
    None,
    /// O_DSYNC.
    Dsync,
    /// O_SYNC.
    Sync,
}

/// A fio job section, `numjobs` threads of it. Offsets and sizes are in bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// Section name.
    pub name: String,
    /// Absolute path in the image; ignored on a raw disk.
    pub filename: String,
    /// Access pattern.
    pub rw: Rw,
    /// Per cent of reads in mixed patterns.
    pub rwmixread: u8,
    /// Bytes of one I/O, a multiple of 512.
    pub bs: u32,
    /// Bytes of the region each thread works on; `None`: to the end of the file or disk.
    pub size: Option<u64>,
    /// Where the first thread's region starts.
    pub offset: u64,
    /// What the n-th thread adds, n times, to `offset`.
    pub offset_increment: u64,
    /// Threads.
    pub numjobs: u32,
    /// I/Os in flight per thread; 1 for [`Engine::Sync`].
    pub iodepth: u32,
    /// Kind of kiocb.
    pub engine: Engine,
    /// fsync after so many writes; 0 never.
    pub fsync: u32,
    /// fdatasync after so many writes; 0 never.
    pub fdatasync: u32,
    /// Open flags.
    pub sync: SyncMode,
    /// End after this many milliseconds.
    pub runtime_ms: Option<u64>,
    /// With `runtime_ms`: start over when the region has been done, until the time is up.
    pub time_based: bool,
    /// End a thread after so many I/Os.
    pub number_ios: Option<u64>,
    /// Past the page cache. There is none on a raw disk.
    pub direct: bool,
    /// How the file comes to be there.
    pub layout: Layout,
    /// What is done to a new file, or behind the end of one that is appended to.
    pub fallocate: Fallocate,
    /// Bytes of a file that is made; how far behind the end appending reaches.
    pub file_bytes: u64,
    /// Bytes that ascending I/O leaves out after each I/O: fio's `rw=write:64k`.
    pub skip: u64,
    /// Remove the file after the step.
    pub unlink: bool,
    /// fsync when a thread is through with its I/O, in the time that counts.
    pub end_fsync: bool,
    /// fsync before a thread closes its file, after the time that counts.
    pub fsync_on_close: bool,
    /// Stamp each write ([`Stamp`], one per `bs`), never two writes of one block in flight at
    /// once, and after the step read back and check every stamped block.
    pub verify: bool,
    /// Seed of the thread's random numbers (the n-th thread adds n).
    pub randseed: u64,
}

/// What the guest tells.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Event {
    /// The CPUs run and the plan was understood.
    Boot {
        /// CPUs that answered.
        cpus: u32,
        /// Bytes of RAM the guest may use.
        memory: u64,
        /// Ticks of the time-stamp counter per second.
        tsc_hz: u64,
    },
    /// A virtio-blk disk was found.
    Disk {
        /// As in [`Target`].
        disk: u32,
        /// 512-byte sectors.
        sectors: u64,
        /// Request queues in use.
        queues: u32,
        /// Requests each queue can hold in flight.
        depth: u32,
    },
    /// A step has begun.
    StepStart {
        /// [`Step::id`].
        step: u32,
    },
    /// Every [`Plan::progress_ms`] while a step runs.
    Progress {
        /// [`Step::id`].
        step: u32,
        /// Milliseconds since it began.
        elapsed_ms: u64,
        /// I/Os done so far.
        ios: u64,
    },
    /// A step has ended.
    StepDone {
        /// [`Step::id`].
        step: u32,
        /// From the first thread's start to the last one's end.
        elapsed_ns: u64,
        /// One per [`Step::jobs`].
        jobs: Vec<JobResult>,
        /// How the file system ran the direct writes of this step.
        modes: ModeCounts,
        /// Instructions executed while the step ran, idle time excluded (`count_instructions`).
        instructions: Option<u64>,
    },
    /// All stamped blocks of a file were read back after a step.
    Verified {
        /// [`Step::id`].
        step: u32,
        /// Path in the image, empty for a raw disk.
        file: String,
        /// Blocks that were right.
        blocks: u64,
        /// Blocks that were not; each of the first few has a log line.
        bad: u64,
    },
    /// `blocks` little-endian `u32`s follow on the debug console: the newest acknowledged
    /// generation of each `unit` bytes of the file, 0 where nothing was written, with
    /// [`GEN_ZERO`] and [`GEN_ANY`].
    Table {
        /// As in [`Target`].
        disk: u32,
        /// Path in the image, empty for a raw disk.
        file: String,
        /// Bytes per stamp.
        unit: u32,
        /// Count of entries.
        blocks: u64,
    },
    /// A line of the script was run.
    Ran {
        /// [`script::Line::number`].
        line: u32,
        /// The line.
        text: String,
        /// What it gave; empty if nothing but success.
        out: String,
    },
    /// The plan could not be finished.
    Failed {
        /// Step under way, if any.
        step: Option<u32>,
        /// What went wrong, for people; names the file, option or disk and the errno.
        message: String,
    },
    /// All steps are done and every file system is unmounted.
    Done,
}

/// In an entry of a table: the block reads as zeros, or is past the end. The rest of the entry is the generation before.
pub const GEN_ZERO: u32 = 1 << 30;
/// In an entry of a table: nobody knows what is there, since a disk may answer anything for what it was told to discard.
pub const GEN_ANY: u32 = 1 << 29;

/// How direct writes were carried out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModeCounts {
    /// Under `i_mutex` throughout.
    pub exclusive: u64,
    /// Without `i_mutex`, `i_data_sem` held for read.
    pub i_data_sem: u64,
    /// Without `i_mutex`, counted in `i_dio_count` only.
    pub in_flight: u64,
}

/// A job's totals over its threads.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct JobResult {
    /// Reads.
    pub read: IoStats,
    /// Writes.
    pub write: IoStats,
    /// Holes punched, or ranges discarded.
    pub trim: IoStats,
    /// fsync and fdatasync calls.
    pub syncs: u64,
    /// I/Os that failed; the first failure has a log line and ends the job.
    pub errors: u64,
    /// errno of the first failure, 0 if none.
    pub first_error: i32,
    /// Longest thread.
    pub elapsed_ns: u64,
}

/// I/Os of one direction.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct IoStats {
    /// I/Os completed.
    pub ios: u64,
    /// Bytes moved.
    pub bytes: u64,
    /// Sum of completion latencies.
    pub lat_sum_ns: u64,
    /// Shortest latency, 0 if there was no I/O.
    pub lat_min_ns: u64,
    /// Longest.
    pub lat_max_ns: u64,
    /// `lat_log2[i]` counts latencies in `2^i .. 2^(i+1)` nanoseconds.
    pub lat_log2: Vec<u64>,
}
