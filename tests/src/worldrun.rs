// SPDX-License-Identifier: GPL-2.0-only
//! Runs a [`World`]: makes its files, starts its tasks, watches them, and looks at what is left. Under the scheduler of the `sim` back end,
//! or on threads as any program.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ext4_dio::fallocate::ext4_fallocate;
use ext4_dio::file::{ext4_file_read, ext4_file_write};
use ext4_dio::fsync::ext4_sync_file;
use ext4_dio::path::{Cred, path_open, path_unlink};
use ext4_dio::setattr::ext4_setattr_size;
use ext4_dio::{
    File, Inode, Kiocb, SuperBlock, ext4_freeze, ext4_mount, ext4_remount, ext4_sync_fs, ext4_umount, ext4_unfreeze,
};
use kernel_shim::alloc::{Arc as KArc, GFP_KERNEL};
use kernel_shim::block::ramdisk::OpMask;
use kernel_shim::block::sim::{DiskImage, InFlight, SimDisk, SimQueue};
use kernel_shim::block::{Bdev, QueueLimits};
use kernel_shim::error::{Error, Result as KResult, code};
use kernel_shim::fs::kiocb::AioComplete;
use kernel_shim::fs::{IoVec, IocbFlags, IovIter, OpenFlags};
use kernel_shim::sched::{self, sim};
use kernel_shim::sync::Completion;

use crate::dio::{MODES, Pages};
use crate::history::{self, Leniency, Log, Read, Way};
use crate::invariants::{DEEP, Watch, Watched};
use crate::world::{Falloc, How, Op, World};

/// What is looked at, besides what is always looked at.
#[derive(Clone, Copy, Debug, Default)]
pub struct Checks {
    /// How often what is durable after a sync is looked at.
    pub durable: u32,
    /// Whether the image is wanted afterwards.
    pub image: bool,
}

/// What a world has left behind.
pub struct Outcome {
    /// Who did what when.
    pub log: Arc<Log>,
    /// Reads of the tasks, and of the files at rest.
    pub reads: Vec<Read>,
    /// What is on the disk, if that was wanted.
    pub image: Option<Vec<u8>>,
    /// Looks at each step, and at all there is.
    pub looks: (u64, u64),
    /// Unmounting answered so.
    pub unmounted: KResult,
}

/// A file as the tasks have it open: closed when the last of them lets go of it.
struct Handles {
    /// Counted through all files of the world.
    obj: u32,
    direct: KArc<File>,
    buffered: KArc<File>,
}

/// A name.
#[derive(Default)]
struct Slot {
    handles: Mutex<Option<Arc<Handles>>>,
    /// Somebody gives the name to another file. Who finds it so does something else.
    busy: AtomicBool,
    watched: Watched,
}

/// A world that runs.
pub struct Running {
    /// Which.
    pub world: World,
    log: Arc<Log>,
    disk: KArc<SimDisk>,
    sb: KArc<SuperBlock>,
    watch: Watch,
    slots: Vec<Slot>,
    objects: AtomicU32,
    checks: Checks,
    /// What was durable when somebody was told that something is.
    durable: Mutex<Vec<(u64, Vec<u8>, u64)>>,
    steps: AtomicU64,
}

/// One of the locks of the test itself, under which nothing sleeps.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn answer(ret: KResult<usize>) -> i64 {
    ret.map_or_else(errno, |n| n as i64)
}

fn errno(error: Error) -> i64 {
    i64::from(error.to_errno())
}

/// Hears of the end of one operation, and tells the log.
struct Tell {
    log: Arc<Log>,
    done: Completion,
}

impl AioComplete for Tell {
    fn ki_complete(this: &KArc<Self>, ret: KResult<usize>, tag: usize) {
        this.log.end(tag as u32, answer(ret));
        this.done.complete_all();
    }
}

/// An operation whose end was not waited for yet.
struct Queued {
    tag: u32,
    obj: u32,
    memory: Option<Pages>,
    read: Option<(u64, usize)>,
    tell: KArc<Tell>,
}

impl Drop for Queued {
    fn drop(&mut self) {
        // The task fails: rather leaked than freed under the device.
        std::mem::forget(self.memory.take());
    }
}

impl Running {
    /// Runs `world` on a disk with `image`, and says what came of it.
    ///
    /// # Panics
    ///
    /// If something is wrong, with what it is.
    pub fn run(world: &World, image: &DiskImage, checks: Checks) -> Outcome {
        let quiet = sim::quiet();
        let run = Arc::new(Self::start(world, image, checks));
        let mut next = 0;
        run.task(&world.prelude, next);
        run.deep();
        next += world.prelude.len() as u32;
        if let Some(fault) = world.fault {
            let kind = if fault.write { OpMask::WRITE } else { OpMask::READ };
            run.disk.fail_nth(fault.nth, kind | OpMask::NOT_META, code::EIO);
        }
        if sim::inside() {
            let hooked = run.clone();
            sim::on_step(move || hooked.step());
        }
        drop(quiet);
        let tasks: Vec<_> = (world.tasks.iter().cloned())
            .map(|ops| {
                let (run, first) = (run.clone(), next);
                next += ops.len() as u32;
                sched::spawn("worldtask", move || {
                    if sim::inside() {
                        sim::own_task();
                    }
                    run.task(&ops, first);
                })
                .expect("a task")
            })
            .collect();
        tasks.into_iter().for_each(sched::JoinHandle::join);
        let _quiet = sim::quiet();
        if sim::inside() {
            sim::end_on_step();
        }
        // Repaired.
        run.disk.fail_nth(u64::MAX, OpMask::empty(), code::EIO);
        run.finish()
    }

    fn start(world: &World, image: &DiskImage, checks: Checks) -> Self {
        let (write_cache, fua) = world.cache;
        let limits = QueueLimits { write_cache, fua, discard: true, write_zeroes: true, ..QueueLimits::DEFAULT };
        let disk = SimDisk::with(image, limits).expect("memory for a disk");
        if checks.durable > 0 {
            disk.keep_writes();
        }
        let bdev = Bdev::new(SimQueue(disk.clone())).expect("good limits");
        let sb = ext4_mount(bdev, MODES[usize::from(world.mode)]).expect("mounting");
        assert_eq!(sb.s_fs_info().s_journal().is_some(), world.journal, "a journal");
        let run = Self {
            log: Arc::new(Log::new(world.ops().map(Op::change))),
            world: world.clone(),
            watch: Watch::new(&sb),
            disk,
            sb,
            slots: (0..world.files).map(|_| Slot::default()).collect(),
            objects: AtomicU32::new(0),
            checks,
            durable: Mutex::default(),
            steps: AtomicU64::new(0),
        };
        run.watch.only_grows.store(world.only_grows(), SeqCst);
        if !world.shifts() {
            run.watch.limit.store(furthest(world), SeqCst);
        }
        for file in 0..world.files {
            run.create(file);
        }
        run
    }

    fn path(file: u8) -> String {
        format!("/f{file}")
    }

    fn open(&self, file: u8, obj: u32, more: OpenFlags) -> KResult<Handles> {
        let path = Self::path(file);
        let open = |flags| path_open(&self.sb, path.as_bytes(), OpenFlags::O_RDWR | flags, 0o644, &Cred::default());
        let direct = open(OpenFlags::O_DIRECT | more)?;
        Ok(Handles { obj, direct, buffered: open(OpenFlags::empty())? })
    }

    /// Makes the file. The name is free, and nobody else makes it.
    fn create(&self, file: u8) -> i64 {
        let obj = self.objects.fetch_add(1, SeqCst);
        match self.open(file, obj, OpenFlags::O_CREAT) {
            Ok(handles) => {
                self.put(file, Some(Arc::new(handles)));
                0
            }
            Err(error) => {
                self.put(file, None);
                errno(error)
            }
        }
    }

    fn put(&self, file: u8, handles: Option<Arc<Handles>>) {
        let before = std::mem::replace(&mut *lock(&self.slots[usize::from(file)].handles), handles);
        // With the lock given back: closing a file may sleep.
        drop(before);
    }

    fn handles(&self, file: u8) -> Option<Arc<Handles>> {
        lock(&self.slots[usize::from(file)].handles).clone()
    }

    /// Looks at the files as they are now.
    fn look(&self, look: impl FnOnce(&[(&Inode, &Watched)]) -> Result<(), String>) {
        let held: Vec<_> = self.slots.iter().map(|slot| (lock(&slot.handles), &slot.watched)).collect();
        let files: Vec<(&Inode, &Watched)> = held
            .iter()
            .filter_map(|(handles, watched)| Some((&**handles.as_ref()?.direct.f_inode(), *watched)))
            .collect();
        let found = look(&files);
        drop(files);
        drop(held);
        if let Err(what) = found {
            panic!("{what}");
        }
    }

    /// At each step of a simulation.
    fn step(&self) {
        let disk = self.disk.in_flight();
        let steps = self.steps.fetch_add(1, SeqCst);
        self.look(|files| {
            self.watch.step(&disk, files.iter().copied())?;
            if steps.is_multiple_of(DEEP) { self.watch.deep(files.iter().copied()) } else { Ok(()) }
        });
    }

    fn deep(&self) {
        self.look(|files| self.watch.deep(files.iter().copied()));
    }

    /// Does `ops`, the first of which has number `first`.
    fn task(self: &Arc<Self>, ops: &[Op], first: u32) {
        let mut queued = Vec::new();
        for (tag, op) in (first..).zip(ops) {
            sim::note(|| format!("operation {tag}: {op}"));
            self.op(tag, op, &mut queued);
            if !sim::inside() {
                self.deep();
            }
        }
        self.reap(&mut queued);
    }

    fn op(self: &Arc<Self>, tag: u32, op: &Op, queued: &mut Vec<Queued>) {
        match *op {
            Op::Reap => return self.reap(queued),
            Op::Shrink => {
                self.sb.shrink_inodes();
                return;
            }
            Op::Sync => {
                self.log.begin(tag, u32::MAX, 0, 0);
                let ret = answer(ext4_sync_fs(&self.sb).map(|()| 0));
                return self.done(tag, op, ret);
            }
            Op::Freeze { pause } => return self.freeze(tag, op, pause),
            Op::Remount { mode } => {
                let ret = ext4_remount(&self.sb, MODES[usize::from(mode)]);
                return self.done(tag, op, answer(ret.map(|()| 0)));
            }
            _ => {}
        }
        let Some(file) = op.file() else { return };
        let Some(handles) = self.handles(file) else { return };
        let inode = handles.direct.f_inode();
        match *op {
            Op::Write { pos, len, how, .. } => self.write(tag, op, &handles, (pos, len), how, queued),
            Op::Read { pos, len, how, .. } => self.read(tag, op, &handles, (pos, len), how, queued),
            Op::Truncate { size, .. } => {
                let truncating = &self.slots[usize::from(file)].watched.truncating;
                truncating.fetch_add(1, SeqCst);
                self.log.begin(tag, handles.obj, i64::from(size), 0);
                let ret = ext4_setattr_size(inode, i64::from(size));
                truncating.fetch_sub(1, SeqCst);
                self.done(tag, op, answer(ret.map(|()| 0)));
            }
            Op::Fallocate { how, pos, len, .. } => {
                let truncating = &self.slots[usize::from(file)].watched.truncating;
                truncating.fetch_add(1, SeqCst);
                self.log.begin(tag, handles.obj, i64::from(pos), u64::from(len));
                let ret = ext4_fallocate(inode, how.flags(), i64::from(pos), i64::from(len));
                truncating.fetch_sub(1, SeqCst);
                self.done(tag, op, answer(ret.map(|()| 0)));
            }
            Op::Fsync { datasync, .. } => {
                self.log.begin(tag, handles.obj, 0, 0);
                let ret = answer(ext4_sync_file(inode, 0, i64::MAX, datasync).map(|()| 0));
                self.done(tag, op, ret);
            }
            Op::Reopen { .. } | Op::Unlink { .. } => self.rename(tag, op, file, handles),
            _ => {}
        }
    }

    /// What changes who has the name.
    fn rename(&self, tag: u32, op: &Op, file: u8, handles: Arc<Handles>) {
        let slot = &self.slots[usize::from(file)];
        if slot.busy.swap(true, SeqCst) {
            return;
        }
        // Whoever was faster may have made a new one.
        let obj = self.handles(file).map(|now| now.obj);
        drop(handles);
        let ret = match (op, obj) {
            (_, None) => 0,
            (Op::Reopen { .. }, Some(obj)) => {
                self.put(file, None);
                match self.open(file, obj, OpenFlags::empty()) {
                    Ok(handles) => {
                        self.put(file, Some(Arc::new(handles)));
                        0
                    }
                    Err(error) => errno(error),
                }
            }
            _ => match path_unlink(&self.sb, Self::path(file).as_bytes()) {
                Ok(()) => self.create(file),
                Err(error) => errno(error),
            },
        };
        slot.busy.store(false, SeqCst);
        self.done(tag, op, ret);
    }

    fn freeze(&self, tag: u32, op: &Op, pause: u8) {
        if let Err(error) = ext4_freeze(&self.sb) {
            return self.done(tag, op, errno(error));
        }
        self.watch.frozen.store(true, SeqCst);
        let before = self.disk.image();
        for _ in 0..pause {
            sched::yield_now();
        }
        assert!(self.disk.image() == before, "operation {tag}: the disk changed while it was frozen");
        self.watch.frozen.store(false, SeqCst);
        let ret = answer(ext4_unfreeze(&self.sb).map(|()| 0));
        self.done(tag, op, ret);
    }

    fn write(
        self: &Arc<Self>,
        tag: u32,
        op: &Op,
        handles: &Handles,
        (pos, len): (u32, u32),
        how: How,
        queued: &mut Vec<Queued>,
    ) {
        let mut memory = Pages::new(len as usize, 0);
        history::payload(tag, memory.bytes_mut());
        let file = if how.direct { &handles.direct } else { &handles.buffered };
        let known = if how.append { -1 } else { i64::from(pos) };
        self.log.begin(tag, handles.obj, known, u64::from(len));
        let iov = [IoVec::source(memory.bytes())];
        if !how.queued {
            let mut iocb = Kiocb::new_sync(file, i64::from(pos));
            set_flags(&mut iocb, how);
            let ret = ext4_file_write(&mut iocb, &mut IovIter::new(&iov));
            if let (true, Ok(n)) = (how.append, ret) {
                self.log.moved(tag, iocb.ki_pos - n as i64);
            }
            self.log.end(tag, answer(ret));
            return self.checked(tag, op);
        }
        let tell = self.tell();
        // SAFETY: the memory is kept, and left alone, until the end of the write was told: by `reap`, or for ever.
        let mut iocb = unsafe { Kiocb::new_async(file, i64::from(pos), tell.clone(), tag as usize) };
        set_flags(&mut iocb, how);
        let ret = ext4_file_write(&mut iocb, &mut IovIter::new(&iov));
        let at = match ret {
            // Moved on by what was written at once.
            Ok(n) => iocb.ki_pos - n as i64,
            _ => iocb.ki_pos,
        };
        if how.append && (ret.is_ok() || ret == Err(code::EIOCBQUEUED)) {
            self.log.moved(tag, at);
        }
        self.submitted(op, Queued { tag, obj: handles.obj, memory: Some(memory), read: None, tell }, ret, queued);
    }

    fn tell(self: &Arc<Self>) -> KArc<Tell> {
        KArc::new(Tell { log: self.log.clone(), done: Completion::new() }, GFP_KERNEL).expect("memory")
    }

    fn read(
        self: &Arc<Self>,
        tag: u32,
        op: &Op,
        handles: &Handles,
        (pos, len): (u32, u32),
        how: How,
        queued: &mut Vec<Queued>,
    ) {
        let mut memory = Pages::new(len as usize, 0xee);
        let file = if how.direct { &handles.direct } else { &handles.buffered };
        self.log.begin(tag, handles.obj, i64::from(pos), u64::from(len));
        let read = Some((u64::from(pos), len as usize));
        let tell = self.tell();
        let iov = [IoVec::dest(memory.bytes_mut())];
        let ret = if how.queued {
            // SAFETY: as for writes.
            let mut iocb = unsafe { Kiocb::new_async(file, i64::from(pos), tell.clone(), tag as usize) };
            ext4_file_read(&mut iocb, &mut IovIter::new(&iov))
        } else {
            ext4_file_read(&mut Kiocb::new_sync(file, i64::from(pos)), &mut IovIter::new(&iov))
        };
        self.submitted(op, Queued { tag, obj: handles.obj, memory: Some(memory), read, tell }, ret, queued);
    }

    /// An operation was submitted, and has ended already if `ret` says so.
    fn submitted(&self, op: &Op, this: Queued, ret: KResult<usize>, queued: &mut Vec<Queued>) {
        if ret == Err(code::EIOCBQUEUED) {
            return queued.push(this);
        }
        self.log.end(this.tag, answer(ret));
        self.ended(op, this);
    }

    fn reap(&self, queued: &mut Vec<Queued>) {
        for this in queued.drain(..) {
            this.tell.done.wait();
            let op = self.world.ops().nth(this.tag as usize).copied();
            self.ended(&op.unwrap_or(Op::Reap), this);
        }
    }

    /// An operation has ended: what it read is noted, its memory is free again.
    fn ended(&self, op: &Op, mut this: Queued) {
        let memory = this.memory.take();
        self.checked(this.tag, op);
        let record = &self.log.records[this.tag as usize];
        if let (Some((pos, asked)), Some(memory), Some(n @ 0..)) = (this.read, memory, record.answer()) {
            let (invoke, ret) = record.times();
            let way =
                if matches!(op, Op::Read { how: How { direct: true, .. }, .. }) { Way::Direct } else { Way::Buffered };
            let bytes = memory.bytes()[..n as usize].to_vec();
            self.log.read(Read { tag: this.tag, obj: this.obj, way, pos, asked, bytes, invoke, ret });
        }
    }

    fn done(&self, tag: u32, op: &Op, ret: i64) {
        self.log.end(tag, ret);
        self.checked(tag, op);
    }

    /// Whether an operation may answer so; and if something is durable now, what is.
    fn checked(&self, tag: u32, op: &Op) {
        let Some(ret) = self.log.records[tag as usize].answer() else { return };
        sim::note(|| format!("operation {tag}: {ret}"));
        if ret < 0 && self.world.fault.is_none() {
            assert!(
                may_fail(op, -ret as i32),
                "operation {tag} ({op}) failed: {}",
                std::io::Error::from_raw_os_error(-ret as i32)
            );
        }
        let durable = matches!(op, Op::Fsync { .. } | Op::Sync | Op::Write { how: How { dsync: true, .. }, .. });
        if ret >= 0 && durable {
            let mut images = lock(&self.durable);
            if images.len() < self.checks.durable as usize {
                let before = self.log.now();
                let image = self.disk.durable_image();
                images.push((before, image, self.log.now()));
            }
        }
    }

    /// Nobody runs any more: looks at everything, reads everything, unmounts.
    fn finish(self: Arc<Self>) -> Outcome {
        let sb = self.sb.clone();
        sb.drain_direct_io();
        sb.s_fs_info().dio.drain_trims();
        {
            // The flusher writes what nobody waits for. It is outside now, and stays there.
            let _umount = sb.s_umount.write();
            let disk: Vec<InFlight> = self.disk.in_flight();
            self.look(|files| self.watch.rest(&disk, files.iter().copied()));
        }
        let files = self.read_all();
        let images = std::mem::take(&mut *lock(&self.durable));
        if self.world.fault.is_none() && !self.world.ops().any(|op| matches!(op, Op::Unlink { .. } | Op::Reopen { .. }))
        {
            images.into_iter().for_each(|(invoke, image, ret)| self.read_durable(invoke, image, ret));
        }
        for file in 0..self.world.files {
            self.put(file, None);
        }
        let unmounted = ext4_umount(&sb);
        if self.world.fault.is_none()
            && let Err(what) = self.check_image(&files)
        {
            panic!("{what}");
        }
        let image = self.checks.image.then(|| self.disk.image());
        let (log, looks, reads) = (self.log.clone(), self.watch.looks(), self.log.take_reads());
        Outcome { log, reads, image, looks, unmounted }
    }

    /// What is on the disk after unmounting is what was read before.
    fn check_image(&self, files: &[Option<Vec<u8>>]) -> Result<(), String> {
        let mut s_last_orphan = [0; 4];
        self.disk.peek(1024 + 0xe8, &mut s_last_orphan);
        if s_last_orphan != [0; 4] {
            return Err(format!("inode {} is an orphan after unmounting", u32::from_le_bytes(s_last_orphan)));
        }
        let bdev = Bdev::new(SimQueue(self.disk.clone())).expect("good limits");
        let reader = crate::reader::Reader::new(&bdev).map_err(|error| format!("the image: {error:?}"))?;
        for (file, contents) in (0..).zip(files) {
            let Some(contents) = contents else { continue };
            let read = reader.lookup(&Self::path(file)).and_then(|node| reader.read(&node));
            let read = read.map_err(|error| format!("/f{file} in the image: {error:?}"))?;
            if read != *contents {
                return Err(format!(
                    "/f{file} after unmounting: {}",
                    difference("the image", &read, "memory", contents)
                ));
            }
        }
        Ok(())
    }

    /// The contents of the files, read both ways.
    fn read_all(&self) -> Vec<Option<Vec<u8>>> {
        let mut all = Vec::new();
        for file in 0..self.world.files {
            let Some(handles) = self.handles(file) else {
                all.push(None);
                continue;
            };
            let asked = (handles.direct.f_inode().i_size() as usize + 1).next_multiple_of(4096) + 4096;
            let contents = [(Way::Direct, &handles.direct), (Way::Buffered, &handles.buffered)].map(|(way, file)| {
                let invoke = self.log.now();
                let bytes =
                    crate::dio::read(file, 0, asked).unwrap_or_else(|error| panic!("reading at rest: {error:?}"));
                let (obj, ret) = (handles.obj, self.log.now());
                self.log.read(Read { tag: u32::MAX, obj, way, pos: 0, asked, bytes: bytes.clone(), invoke, ret });
                bytes
            });
            let same = contents[0] == contents[1] || self.world.fault.is_some();
            assert!(same, "/f{file} at rest: {}", difference("direct", &contents[0], "buffered", &contents[1]));
            all.push(Some(contents.into_iter().next().unwrap_or_default()));
        }
        all
    }

    /// Mounts what was durable at a moment between `at` and `ret`, which replays the journal, and reads it.
    fn read_durable(&self, at: u64, image: Vec<u8>, ret: u64) {
        let disk = SimDisk::new(&DiskImage::new(image)).expect("a disk");
        let bdev = Bdev::new(SimQueue(disk)).expect("good limits");
        let sb = ext4_mount(bdev, "").unwrap_or_else(|error| panic!("mounting what was durable at {at}: {error:?}"));
        for file in 0..self.world.files {
            let opened = path_open(&sb, Self::path(file).as_bytes(), OpenFlags::empty(), 0, &Cred::default());
            let asked = furthest(&self.world) as usize + 4096;
            let bytes = match opened {
                Ok(opened) => crate::dio::read(&opened, 0, asked)
                    .unwrap_or_else(|error| panic!("reading what was durable of {file:?} at {at}: {error:?}")),
                Err(code::ENOENT) => Vec::new(),
                Err(error) => panic!("looking for what was durable at {at}: {error:?}"),
            };
            let obj = u32::from(file);
            self.log.read(Read { tag: u32::MAX, obj, way: Way::Durable, pos: 0, asked, bytes, invoke: at, ret });
        }
        ext4_umount(&sb).expect("unmounting");
    }
}

/// How far any file can reach.
fn furthest(world: &World) -> i64 {
    let appended: i64 = world
        .ops()
        .map(|op| match op {
            Op::Write { how: How { append: true, .. }, len, .. } => i64::from(*len),
            _ => 0,
        })
        .sum();
    let written = world.ops().map(|op| match op {
        Op::Write { how: How { append: false, .. }, pos, len, .. } => i64::from(pos + len),
        Op::Fallocate { pos, len, .. } => i64::from(pos + len),
        Op::Truncate { size, .. } => i64::from(*size),
        _ => 0,
    });
    appended + written.max().unwrap_or(0)
}

fn set_flags(iocb: &mut Kiocb<'_>, how: How) {
    iocb.ki_flags.set(IocbFlags::APPEND, how.append);
    iocb.ki_flags.set(IocbFlags::DSYNC, how.dsync);
    iocb.ki_flags.set(IocbFlags::NOWAIT, how.nowait);
}

/// Which errors are no surprise on a disk that does not fail.
fn may_fail(op: &Op, errno: i32) -> bool {
    match op {
        // A direct append behind an end that is in the middle of a sector.
        Op::Write { how, .. } => {
            how.nowait && errno == libc::EAGAIN
                || errno == libc::ENOSPC
                || how.append && how.direct && errno == libc::EINVAL
        }
        Op::Fallocate { how: Falloc::Collapse | Falloc::Insert, .. } => errno == libc::EINVAL || errno == libc::ENOSPC,
        Op::Fallocate { .. } => errno == libc::ENOSPC,
        Op::Freeze { .. } | Op::Remount { .. } => errno == libc::EBUSY,
        _ => false,
    }
}

/// Where two contents differ.
pub fn difference(a_name: &str, a: &[u8], b_name: &str, b: &[u8]) -> String {
    let at = a.iter().zip(b).position(|(a, b)| a != b).unwrap_or(a.len().min(b.len())) / 8 * 8;
    let word = |bytes: &[u8]| match bytes.get(at..at + 8) {
        Some(word) => history::Word::of(u64::from_le_bytes(word.try_into().unwrap_or_default())).to_string(),
        None => "its end".to_string(),
    };
    format!("{} and {} bytes; at byte {at} {a_name} has {}, and {b_name} {}", a.len(), b.len(), word(a), word(b))
}

impl Outcome {
    /// Looks at the history, and at the image. How many sectors of reads were checked.
    ///
    /// # Errors
    ///
    /// What is wrong.
    pub fn check(self, world: &World) -> Result<u64, String> {
        if world.fault.is_none() {
            self.unmounted.map_err(|error| format!("unmounting: {error:?}"))?;
        }
        let lenient = Leniency {
            faults: world.fault.is_some(),
            bad_reads: world.fault.is_some_and(|fault| !fault.write),
            shifts: world.shifts(),
        };
        history::check(&self.log, self.reads, lenient)
    }
}
