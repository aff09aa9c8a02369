// SPDX-License-Identifier: GPL-2.0-only
//! Every n of every kind of fault in one workload; what each run is checked for.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use ext4_dio::SuperBlock;
use ext4_dio_tests::differential::words;
use ext4_dio_tests::oplang::{Errno, Op, Out, Reply};
use kernel_shim::alloc::fault::{FailNth, Family, fail_nth_allocation};
use kernel_shim::block::ReqOp;
use kernel_shim::block::fault::Fault;
use kernel_shim::block::ramdisk::OpMask;

use crate::disk::{Cow, Pages, Scratch, hash};
use crate::oracle::{Account, Reference, References, Tree, look, same_answer};
use crate::script::{Machine, Step};
use crate::workloads::Task;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// The n-th allocation of the thread that does the workload.
    Alloc,
    /// The n-th allocation of the mount's own threads: commits, writing back, ends of direct writes, evictions.
    AllocThreads,
    /// The n-th read is EIO.
    Read,
    /// The n-th write is EIO: data, metadata and journal are one row of requests, so each of them is hit.
    Write,
    /// The n-th flush is EIO.
    Flush,
    /// The n-th write is EIO, and some of its sectors are written.
    Torn,
    /// From the n-th request on all are EIO; the device is back at the next mount.
    Dies,
    /// So is the n-th, and one, two or three behind it.
    Away,
}

/// All of them.
pub(crate) const KINDS: [Kind; 8] =
    [Kind::Alloc, Kind::AllocThreads, Kind::Read, Kind::Write, Kind::Flush, Kind::Torn, Kind::Dies, Kind::Away];

const WRITES: OpMask = OpMask::WRITE.union(OpMask::WRITE_ZEROES);
const ALL: OpMask = WRITES.union(OpMask::READ).union(OpMask::FLUSH);

impl Kind {
    /// No memory; else something is wrong with the device.
    pub(crate) fn memory(self) -> bool {
        matches!(self, Kind::Alloc | Kind::AllocThreads)
    }

    /// What a step may answer for it.
    fn errno(self, e: Errno) -> bool {
        match e {
            libc::ENOMEM => self.memory(),
            libc::EIO | libc::EROFS => !self.memory(),
            // Of a super block that was torn while it was written, and is read by the next mount.
            libc::EBADMSG => self == Kind::Torn,
            _ => false,
        }
    }
}

/// A fault that is armed.
struct Armed<'a> {
    kind: Kind,
    thread: Option<FailNth>,
    family: &'a Family,
    machine_fired: u64,
}

impl<'a> Armed<'a> {
    fn arm(kind: Kind, n: u64, machine: &Machine, family: &'a Family) -> Self {
        let faults = &machine.faults;
        let mut thread = None;
        match kind {
            Kind::Alloc => thread = Some(fail_nth_allocation(n)),
            Kind::AllocThreads => family.fail_nth_allocation(n),
            Kind::Read => faults.fail_nth(n, OpMask::READ),
            Kind::Write => faults.fail_nth(n, WRITES),
            Kind::Flush => faults.fail_nth(n, OpMask::FLUSH),
            Kind::Torn => faults.tear_nth(n, OpMask::WRITE, n),
            Kind::Dies => faults.die_at(n, ALL),
            Kind::Away => faults.fault_nth(n, ALL, Fault::Away(2 + n % 3)),
        }
        Self { kind, thread, family, machine_fired: faults.fired() }
    }

    fn fired(&self, machine: &Machine) -> bool {
        match self.kind {
            Kind::Alloc => self.thread.as_ref().is_some_and(FailNth::fired),
            Kind::AllocThreads => self.family.fired() > 0,
            _ => machine.faults.fired() > self.machine_fired,
        }
    }

    fn disarm(&mut self, machine: &Machine) {
        self.thread = None;
        self.family.fail_nth_allocation(0);
        machine.faults.repair();
    }
}

/// Nothing is left of what was done: no lock, no count, no `io_end`, no reference.
fn assert_idle(sb: &SuperBlock, frozen: bool) {
    let sbi = sb.s_fs_info();
    sb.drain_direct_io();
    sbi.dio.drain_trims();
    if !frozen {
        sb.drain_evictions();
    }
    assert_eq!(sbi.dio.io_ends_available(), sbi.dio.io_ends(), "an io_end is missing");
    let checked = sb.for_each_inode(
        |_| true,
        |inode| {
            let ino = inode.i_ino();
            let info = inode.i_private();
            assert!(!inode.is_locked(), "i_mutex of {ino} is held");
            assert!(info.i_data_sem.try_write().is_some(), "i_data_sem of {ino} is held");
            assert!(info.xattr_sem.try_write().is_some(), "xattr_sem of {ino} is held");
            assert!(!info.aio.aio_mutex.is_locked(), "the aio mutex of {ino} is held");
            assert_eq!(inode.i_dio_count(), 0, "i_dio_count of {ino}");
            assert_eq!(inode.i_writecount(), 0, "i_writecount of {ino}");
            assert!(!info.aio.is_unwritten(), "{ino} waits for a conversion");
            assert_eq!(info.i_unwritten.load(std::sync::atomic::Ordering::SeqCst), 0, "i_unwritten of {ino}");
            assert!(!info.i_dio_gate.is_closed(), "the gate for reads of {ino} is closed");
            Ok(())
        },
    );
    assert_eq!(checked, Ok(()));
    // The flusher has it for a while.
    drop(sb.s_umount.write());
    assert_eq!(sb.s_writers.is_shut(), frozen, "the gate of writers");
    assert!(frozen || sb.try_start_write().is_some(), "somebody is writing");
}

/// What was found of one run.
pub(crate) struct Ran {
    /// The fault has struck.
    pub(crate) fired: bool,
    /// What is wrong.
    pub(crate) wrong: Option<String>,
}

/// What all runs of a task share.
pub(crate) struct Bench<'a> {
    task: &'a Task,
    references: References,
    /// Images that were checked, by kind of check and hash.
    checked: BTreeSet<(bool, Vec<usize>, u64)>,
    /// Where `e2fsck` looks.
    pub(crate) scratch: Scratch,
}

macro_rules! ensure {
    ($cond:expr, $($why:tt)*) => {
        if !$cond {
            return Err(format!($($why)*));
        }
    };
}

/// A run, while it goes on.
struct Run<'a> {
    task: &'a Task,
    kind: Kind,
    machine: Machine,
    replies: Vec<Reply>,
    aborted: bool,
    /// Read-only without having been asked to.
    stopped: bool,
}

impl<'a> Bench<'a> {
    pub(crate) fn new(task: &'a Task) -> Self {
        let scratch = Scratch::new(task.prepared.base.clone(), task.prepared.log.clone());
        Self { task, references: References::default(), checked: BTreeSet::new(), scratch }
    }

    /// One run; a panic is what is wrong with it.
    pub(crate) fn run(&mut self, kind: Kind, n: u64) -> Ran {
        let family = Family::new();
        let mut fired = false;
        let ret = catch_unwind(AssertUnwindSafe(|| self.try_run(kind, n, &family, &mut fired)));
        drop(family);
        let wrong = ret.unwrap_or_else(|p| Err(format!("panic: {}", words(&*p)))).err();
        Ran { fired, wrong }
    }

    fn try_run(&mut self, kind: Kind, n: u64, family: &Family, fired: &mut bool) -> Result<(), String> {
        let task = self.task;
        let full = self.references.without(task, &BTreeSet::new());
        let disk = Cow::new(task.prepared.base.clone());
        let machine = Machine::new(disk, task.world.late, task.world.options);
        let mut run = Run { task, kind, machine, replies: Vec::new(), aborted: false, stopped: false };
        let mut armed = None;
        if task.workload.cold {
            armed = Some(Armed::arm(kind, n, &run.machine, family));
        }
        let mounted = run.machine.apply(&Step::Mount);
        trace(&Step::Mount, &mounted);
        if let Err(e) = mounted {
            *fired = armed.as_ref().is_some_and(|armed| armed.fired(&run.machine));
            drop(armed);
            ensure!(*fired && kind.errno(e), "mounting: errno {e}");
            run.machine.faults.repair();
            return self.after_failed_mount(&run);
        }
        let mut armed = armed.unwrap_or_else(|| Armed::arm(kind, n, &run.machine, family));
        for step in &task.steps {
            let got = run.machine.apply(step);
            trace(step, &got);
            run.replies.push(got);
            if run.machine.sb.is_none() {
                // It could not be mounted again.
                break;
            }
        }
        run.machine.close_all();
        *fired = armed.fired(&run.machine);
        let account = Account::of(task, &run.replies, &full, |e| kind.errno(e));
        let reference = self.references.without(task, &account.omitted);
        let mut live = None;
        if *fired {
            if kind != Kind::Dies {
                armed.disarm(&run.machine);
            }
            run.check_replies(&account, &reference)?;
            live = run.check_live(&account, &reference, &full)?;
        } else {
            run.check_replies(&account, &reference)?;
        }
        let late = !*fired;
        run.note_abort();
        let lost = run.machine.sb.is_none().then(|| run.replies.last().cloned()).flatten();
        let ended = lost.unwrap_or_else(|| run.machine.apply(&Step::Umount));
        trace(&Step::Umount, &ended);
        *fired |= armed.fired(&run.machine);
        armed.disarm(&run.machine);
        run.check_umount(&ended, *fired)?;
        run.check_told(&ended)?;
        if !*fired {
            return Ok(());
        }
        let end = End { ended: &ended, late, live: live.as_ref() };
        self.after(&run, &end, &account, &[&reference, &full])
    }

    /// The mount has failed: it left nothing, and the next succeeds.
    fn after_failed_mount(&mut self, run: &Run<'_>) -> Result<(), String> {
        let full = self.references.without(self.task, &BTreeSet::new());
        let mut pages = run.machine.disk.pages(false);
        if run.kind == Kind::Torn && run.machine.faults.first_failed().is_some_and(|failed| failed.sector < 8) {
            return Ok(());
        }
        if !self.checked.insert((false, Vec::new(), hash(&pages))) {
            return Ok(());
        }
        if !run.kind.memory() && (run.tore_what_starts() || !run.task.world.journal()) {
            pages = self.scratch.repaired(&pages)?;
        }
        let (tree, left) = self.recover(pages)?;
        Account::default().compare(&tree, &full.after[0], &[], false)?;
        self.check_left(run, &left)
    }

    /// Mounts, looks at everything, and unmounts: what there was, and what is on the disk then.
    fn recover(&self, pages: Pages) -> Result<(Tree, Pages), String> {
        let task = self.task;
        let disk = Cow::with(task.prepared.base.clone(), pages);
        let mut machine = Machine::new(disk, false, task.world.options);
        machine.apply(&Step::Mount).map_err(|e| format!("the next mount: errno {e}"))?;
        let ours = machine.vfs().ok_or("no mount")?;
        let tree = look(ours, task.xattrs()).map_err(|e| format!("after the next mount: {e}"));
        let ended = machine.apply(&Step::Umount);
        let tree = tree?;
        ended.map_err(|e| format!("the next unmount: errno {e}"))?;
        Ok((tree, machine.disk.pages(false)))
    }

    /// What the next mount has left is clean; or says no more than that there was an error.
    fn check_left(&mut self, run: &Run<'_>, left: &Pages) -> Result<(), String> {
        let clean = self.scratch.check_clean(left);
        if clean.is_ok() || run.kind.memory() {
            return clean;
        }
        self.scratch.repaired(left).map(|_| ())
    }

    /// What is on the disk after a run with a fault.
    fn after(&mut self, run: &Run<'_>, end: &End<'_>, account: &Account, runs: &[&Reference]) -> Result<(), String> {
        // A dead device, or one that did not flush, may have lost what was in its cache.
        let power = matches!(run.kind, Kind::Dies | Kind::Flush);
        let omitted: Vec<usize> = account.omitted.iter().copied().collect();
        for durable in [false, true] {
            if durable && !power {
                continue;
            }
            let pages = run.machine.disk.pages(durable);
            if run.kind == Kind::Torn && run.machine.faults.first_failed().is_some_and(|failed| failed.sector < 8) {
                // The super block is one of a kind on a disk so small.
                continue;
            }
            if !self.checked.insert((durable, omitted.clone(), hash(&pages))) {
                continue;
            }
            self.check_image(run, &pages, end, account, runs)
                .map_err(|e| if durable { format!("with the cache lost: {e}") } else { e })?;
        }
        Ok(())
    }

    fn check_image(
        &mut self,
        run: &Run<'_>,
        pages: &Pages,
        end: &End<'_>,
        account: &Account,
        runs: &[&Reference],
    ) -> Result<(), String> {
        let (kind, world) = (run.kind, run.task.world);
        // New blocks of such a file are not marked as unwritten until the device has the data.
        let stale = !kind.memory() && !world.extents();
        // The next mount finishes with what could not be deleted or cut off now.
        let orphans = has_orphans(pages, &run.task.prepared.base);
        if kind.memory() && end.ended.is_ok() && !orphans {
            self.scratch.check_clean(pages)?;
        }
        // Nothing but e2fsck puts together again what was cut off without a journal, nor what a mount begins with.
        let ours = kind.memory() || world.journal() && !run.tore_what_starts();
        if ours {
            let (tree, left) = self.recover(pages.clone())?;
            self.check_left(run, &left)?;
            end.check(&tree, account, runs, stale)?;
        }
        if !kind.memory() {
            let repaired = self.scratch.repaired(pages)?;
            let (tree, _) = self.recover(repaired)?;
            if ours {
                end.check(&tree, account, runs, stale).map_err(|e| format!("after e2fsck: {e}"))?;
            }
        }
        Ok(())
    }
}

/// Whether the super block has a list of orphans: `s_last_orphan`.
fn has_orphans(pages: &Pages, base: &[u8]) -> bool {
    let first = pages.get(&0).map_or(&base[..4096], |page| &page[..]);
    first[1024 + 0xe8..][..4] != [0; 4]
}

/// How a run has ended.
struct End<'a> {
    ended: &'a Reply,
    /// The fault struck while unmounting.
    late: bool,
    /// What was seen before unmounting.
    live: Option<&'a Tree>,
}

impl End<'_> {
    fn check(&self, tree: &Tree, account: &Account, runs: &[&Reference], stale: bool) -> Result<(), String> {
        let Some(first) = runs.first() else { return Ok(()) };
        account.durable_in(tree, runs, stale)?;
        if self.ended.is_ok() {
            // All was synced.
            let others: Vec<&Tree> = runs.iter().flat_map(|run| run.after.iter()).map(|tree| &**tree).collect();
            match self.live {
                Some(live) => account.compare(tree, live, &others, stale)?,
                None if self.late => account.compare(tree, first.after.last().ok_or("no steps")?, &others, stale)?,
                None => {}
            }
        }
        Ok(())
    }
}

impl Run<'_> {
    fn note_abort(&mut self) {
        if let Some(sb) = &self.machine.sb {
            self.aborted = sb.s_fs_info().journal_aborted();
            let asked = self.task.workload.name == "options" && sb.s_fs_info().options().rdonly;
            self.stopped = self.aborted || sb.s_fs_info().is_rdonly() && !asked;
        }
    }

    /// Whether a block was torn without which nothing can be mounted: the super block, or any of the journal, as its end may look
    /// like a transaction that went bad.
    fn tore_what_starts(&self) -> bool {
        let failed = self.machine.faults.first_failed();
        let is = |sector: u64| sector < 8 || self.task.prepared.journal.iter().any(|range| range.contains(&sector));
        self.kind == Kind::Torn && failed.is_some_and(|failed| is(failed.sector))
    }

    /// Each answer is what it is without the steps that failed.
    fn check_replies(&self, account: &Account, reference: &Reference) -> Result<(), String> {
        if self.kind == Kind::Dies || self.kind == Kind::Away {
            // What the cache knows is answered, and the rest is not.
            return Ok(());
        }
        for (n, (got, want)) in self.replies.iter().zip(&reference.replies).enumerate() {
            let step = &self.task.steps[n];
            let short = match (got, want) {
                // What could be read before the fault.
                (Ok(Out::Bytes(got)), Ok(Out::Bytes(want))) if !account.is_torn() => want.starts_with(got),
                _ => false,
            };
            let short = short
                || match got {
                    Ok(Out::Ends(ends)) => {
                        ends.iter().all(|end| end.is_ok() || matches!(end, Err(e) if self.kind.errno(*e)))
                    }
                    Ok(Out::Count(n)) => matches!(want, Ok(Out::Count(m)) if n <= m),
                    // Data that a step wrote in part.
                    Ok(Out::Bytes(_) | Out::Pos(_) | Out::Stat(_)) => account.is_torn(),
                    _ => false,
                };
            ensure!(
                account.omitted.contains(&n) || same_answer(got, want) || short,
                "step {n}, {step:?}: {got:?}, should be {want:?}"
            );
        }
        Ok(())
    }

    /// The fault is over, and the mount goes on: nothing is left behind, all is as it should be, and more can be done. What there is
    /// then, if the mount was not stopped.
    fn check_live(
        &mut self,
        account: &Account,
        reference: &Reference,
        full: &Reference,
    ) -> Result<Option<Tree>, String> {
        let Some(sb) = self.machine.sb.clone() else { return Ok(None) };
        if sb.s_writers.is_shut() {
            let thawed = self.machine.apply(&Step::Thaw);
            ensure!(thawed.is_ok() || self.kind == Kind::Dies, "thawing: {thawed:?}");
        }
        assert_idle(&sb, false);
        self.note_abort();
        if self.stopped {
            ensure!(!self.kind.memory(), "no memory has stopped the mount");
            let path = "a/probe".to_string();
            let got = self.machine.apply(&Step::Op(Op::Mkdir { path, mode: 0o755 }));
            ensure!(matches!(got, Err(libc::EROFS)) || self.kind == Kind::Dies, "the mount is stopped: mkdir {got:?}");
            return Ok(None);
        }
        if self.kind == Kind::Dies || self.kind == Kind::Away {
            return Ok(None);
        }
        let unmounted = |n: &usize| self.task.steps.get(*n) == Some(&Step::Remount);
        if !self.kind.memory() && account.omitted.iter().any(unmounted) {
            // What unmounting has failed to write is lost, names included.
            return Ok(None);
        }
        let stale = !self.kind.memory() && !self.task.world.extents();
        let strict = look(self.machine.vfs().ok_or("no mount")?, self.task.xattrs())?;
        let want = reference.after.last().ok_or("no steps")?;
        let others: Vec<&Tree> = reference.after.iter().chain(&full.after).map(|tree| &**tree).collect();
        account.compare(&strict, want, &others, stale).map_err(|e| format!("before unmounting: {e}"))?;
        drop(sb);
        self.check_second(reference)?;
        let live = look(self.machine.vfs().ok_or("no mount")?, self.task.xattrs())?;
        account.compare(&live, &reference.last, &others, stale).map_err(|e| format!("after the second run: {e}"))?;
        Ok(Some(live))
    }

    /// The workload again, in another directory.
    fn check_second(&mut self, reference: &Reference) -> Result<(), String> {
        for (step, want) in self.task.second.iter().zip(&reference.second) {
            let got = self.machine.apply(step);
            trace(step, &got);
            // An error of data written back before is told once.
            let told = !self.kind.memory() && matches!(step, Step::Op(Op::Sync {} | Op::Statfs {}) | Step::Freeze);
            ensure!(same_answer(&got, want) || told, "again: {step:?}: {got:?}, should be {want:?}");
        }
        self.machine.close_all();
        if let Some(sb) = &self.machine.sb
            && sb.s_writers.is_shut()
        {
            self.machine.apply(&Step::Thaw).map_err(|e| format!("thawing: errno {e}"))?;
        }
        assert_idle(self.machine.sb.as_ref().ok_or("no mount")?, false);
        Ok(())
    }

    fn check_umount(&self, ended: &Reply, fired: bool) -> Result<(), String> {
        match ended {
            Ok(_) => {
                ensure!(!self.aborted, "unmounting with a stopped journal succeeds");
                Ok(())
            }
            Err(e) if fired && self.kind.errno(*e) => Ok(()),
            Err(e) => Err(format!("unmounting: errno {e}")),
        }
    }

    /// A write to the journal that has failed is told of. (Of data that a second try has written nobody need be told; the rest shows in
    /// what is missing afterwards.)
    fn check_told(&self, ended: &Reply) -> Result<(), String> {
        let Some(failed) = self.machine.faults.first_failed() else { return Ok(()) };
        let told = self.aborted
            || ended.is_err()
            || self.replies.iter().any(|got| matches!(got, Err(e) if self.kind.errno(*e)));
        let write = matches!(failed.opf.op(), ReqOp::Write | ReqOp::WriteZeroes);
        let log = self.task.prepared.journal.iter().any(|range| range.contains(&failed.sector));
        ensure!(!write || !log || told, "nobody was told that {failed:?} has failed");
        Ok(())
    }
}

fn trace(step: &Step, got: &Reply) {
    if crate::tracing() {
        let text = format!("{got:?}");
        eprintln!("  {step:?}: {}", text.chars().take(100).collect::<String>());
    }
}

/// What a group of workloads has come to.
#[derive(Default)]
pub(crate) struct Tally {
    /// Fault points, and how many struck, by kind.
    pub(crate) points: BTreeMap<Kind, (u64, u64)>,
    /// What went wrong.
    pub(crate) failures: Vec<String>,
    /// Calls of `e2fsck`.
    pub(crate) fscks: usize,
    /// Time by workload.
    pub(crate) times: Vec<(String, u64, Duration)>,
}

/// What is running now, and since when, for [`watch`].
static NOW: Mutex<Vec<(String, Instant)>> = Mutex::new(Vec::new());
/// A run that takes longer hangs.
const HANGS: Duration = Duration::from_secs(60);

fn now_running<R>(what: String, f: impl FnOnce() -> R) -> R {
    let lock = || NOW.lock().unwrap_or_else(PoisonError::into_inner);
    lock().push((what.clone(), Instant::now()));
    let ret = f();
    lock().retain(|(name, _)| *name != what);
    ret
}

/// Ends the process if a run hangs.
pub(crate) fn watch() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        std::thread::spawn(|| {
            loop {
                std::thread::sleep(Duration::from_secs(1));
                let running = NOW.lock().unwrap_or_else(PoisonError::into_inner).clone();
                if let Some((what, _)) = running.iter().find(|(_, since)| since.elapsed() > HANGS) {
                    eprintln!("HANG: {what}\n  {}", crate::replay(what));
                    std::process::abort();
                }
            }
        });
    });
}

impl Tally {
    /// All fault points.
    pub(crate) fn total(&self) -> u64 {
        self.points.values().map(|(points, _)| points).sum()
    }

    /// Every n of `kind`, until the workload runs without the fault; `only` this one.
    pub(crate) fn every_n(&mut self, bench: &mut Bench<'_>, kind: Kind, only: Option<u64>) {
        let stride = bench.task.stride(kind);
        // Without a stride of 1 it is another part each time the workload's name changes.
        let mut n = only.unwrap_or(1 + bench.task.name().len() as u64 % stride);
        let mut failed = 0;
        loop {
            let what = format!("{}/{kind:?}/{n}", bench.task.name());
            if crate::tracing() {
                eprintln!("{what}");
            }
            let ran = now_running(what.clone(), || bench.run(kind, n));
            let count = self.points.entry(kind).or_default();
            count.0 += 1;
            count.1 += u64::from(ran.fired);
            if let Some(wrong) = ran.wrong {
                let failure = format!("{what}: {wrong}\n  {}", crate::replay(&what));
                // At once: whoever waits may not wait until the end.
                eprintln!("{failure}");
                self.failures.push(failure);
                failed += 1;
            }
            // One who is told of ten knows enough.
            if !ran.fired || only.is_some() || failed >= 10 {
                return;
            }
            n += stride;
        }
    }
}
