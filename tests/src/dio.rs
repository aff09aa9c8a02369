// SPDX-License-Identifier: GPL-2.0-only
//! A mount on a RAM disk, for tests of direct writes.

use std::sync::{Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;

use ext4_dio::fallocate::{FallocFlags, ext4_fallocate};
use ext4_dio::file::{ext4_file_read, ext4_file_write};
use ext4_dio::{File, Inode, Kiocb, SuperBlock, ext4_mount, ext4_open, ext4_statfs, ext4_umount};
use kernel_shim::alloc::{Arc as KArc, GFP_KERNEL};
use kernel_shim::block::fault::FaultDisk;
use kernel_shim::block::ramdisk::{Event, OpMask, RamDisk, RamDiskOptions};
use kernel_shim::block::{Bdev, QueueLimits, ReqOp, ReqOpf};
use kernel_shim::error::{Result, code::*};
use kernel_shim::fs::kiocb::AioComplete;
use kernel_shim::fs::{IoVec, IovIter, OpenFlags, RwfFlags};
use kernel_shim::testing::{Tracing, on_trace};

pub use crate::alone::fails_without;
use crate::images::{Image, Mkfs, Source, stamped, stamped_blocks};

/// The three lock modes as mount options: see the table in ext4-dio's crate documentation.
pub const EXCLUSIVE: &str = "dioread_lock";
/// The patch of 2012.
pub const I_DATA_SEM: &str = "dioread_nolock,dio_window=i_data_sem";
/// The default.
pub const IN_FLIGHT: &str = "dioread_nolock";
/// All three.
pub const MODES: [&str; 3] = [EXCLUSIVE, I_DATA_SEM, IN_FLIGHT];

/// Blocks of `/data`, which is written throughout.
pub const DATA_BLOCKS: u32 = 256;
/// Blocks of `/pieces`.
pub const PIECES_BLOCKS: u32 = 16;

/// The bytes of an image, made once per kind and process:
///
/// * `/data`: [`DATA_BLOCKS`] written blocks in one piece;
/// * `/holes`: 64 written blocks, a hole behind each;
/// * `/unwritten`: 64 blocks that were allocated and never written;
/// * `/pieces`: [`PIECES_BLOCKS`] written blocks without holes, in several extents.
pub fn image(spec: &Mkfs) -> Vec<u8> {
    static MADE: Mutex<Vec<(String, Vec<u8>)>> = Mutex::new(Vec::new());
    let key = format!("{spec:?}");
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, bytes)) = made.iter().find(|(k, _)| *k == key) {
        return bytes.clone();
    }
    let source = Source::new();
    source.file("data", &stamped_blocks(DATA_BLOCKS, spec.block_size));
    source.fragmented("holes", spec.block_size, 64);
    for n in 0..PIECES_BLOCKS {
        source.file(&format!("crumbs/{n}"), &stamped(n, spec.block_size));
    }
    let image = Image::make(spec, Some(source.path()));
    // Every second block that the crumbs took becomes free, and the next file finds its place there.
    let pieces = Source::new();
    pieces.file("pieces", &stamped_blocks(PIECES_BLOCKS, spec.block_size));
    let mut script: Vec<String> = (0..PIECES_BLOCKS).step_by(2).map(|n| format!("rm crumbs/{n}")).collect();
    script.push(format!("write {} pieces", pieces.path().join("pieces").display()));
    script.push("write /dev/null unwritten".to_string());
    script.push("fallocate unwritten 0 63".to_string());
    script.push(format!("set_inode_field unwritten size {}", 64 * spec.block_size));
    image.debugfs_script(&script);
    image.assert_clean();
    let bytes = image.bytes();
    made.push((key, bytes.clone()));
    bytes
}

/// How the disk of a [`Mount`] behaves, when the test does not care.
pub fn auto() -> RamDiskOptions {
    RamDiskOptions::default()
}

/// A disk with logical blocks of 4 KiB.
pub fn sectors_4k() -> RamDiskOptions {
    let limits = QueueLimits { logical_block_size: 4096, ..RamDiskOptions::default().limits };
    RamDiskOptions { limits, ..RamDiskOptions::default() }
}

/// A mounted file system.
pub struct Mount {
    /// What is below the fault injection.
    pub disk: KArc<RamDisk>,
    /// Where errors come from.
    pub faults: KArc<FaultDisk<KArc<RamDisk>>>,
    /// The mount.
    pub sb: KArc<SuperBlock>,
}

impl Mount {
    /// Mounts a fresh image of 4 KiB blocks, in all else as `mke2fs` makes it.
    pub fn new(options: &str) -> Self {
        Self::with(&image(&Mkfs::default()), options, auto())
    }

    /// Mounts `image`. The disk behaves as `disk` says from the first file on; mounting itself is not held back.
    pub fn with(image: &[u8], options: &str, disk: RamDiskOptions) -> Self {
        Self::try_with(image, options, disk).expect("mounting")
    }

    /// The same, for images that may not be mountable.
    pub fn try_with(image: &[u8], options: &str, disk: RamDiskOptions) -> Result<Self> {
        let disk = RamDisk::from_image(image.to_vec(), disk).expect("a RAM disk");
        let faults = KArc::new(FaultDisk::new(disk.clone()), GFP_KERNEL).expect("memory");
        let bdev = Bdev::new(faults.clone())?;
        let sb = ext4_mount(bdev, options)?;
        Ok(Self { disk, faults, sb })
    }

    /// Opens for reading and writing, direct.
    pub fn open(&self, path: &str) -> KArc<File> {
        self.open_with(path, OpenFlags::empty())
    }

    /// The same with more flags.
    pub fn open_with(&self, path: &str, flags: OpenFlags) -> KArc<File> {
        ext4_open(&self.sb, path, OpenFlags::O_RDWR | OpenFlags::O_DIRECT | flags)
            .unwrap_or_else(|e| panic!("opening {path}: {e:?}"))
    }

    /// Direct writes so far: under `i_mutex`, under `i_data_sem`, counted only.
    pub fn modes(&self) -> (u32, u32, u32) {
        use std::sync::atomic::Ordering::Relaxed;
        let s = &self.sb.s_fs_info().dio.stats;
        (s.exclusive.load(Relaxed), s.i_data_sem.load(Relaxed), s.in_flight.load(Relaxed))
    }

    /// Opens for reading and writing, through the cache.
    pub fn open_cached(&self, path: &str) -> KArc<File> {
        ext4_open(&self.sb, path, OpenFlags::O_RDWR).unwrap_or_else(|e| panic!("opening {path}: {e:?}"))
    }

    /// Gives the free blocks of the disk to `/holes`, far behind its end: whoever allocates afterwards gets what was freed since. A
    /// few stay, which conversions may need.
    pub fn fill_disk(&self) {
        let free = ext4_statfs(&self.sb).expect("statfs").f_bfree as i64;
        let (file, bs) = (self.open("/holes"), 1 << self.sb.s_blocksize_bits);
        let full = ext4_fallocate(file.f_inode(), FallocFlags::KEEP_SIZE, 1 << 30, (free + 1) * bs);
        assert_eq!(full, Err(ENOSPC));
    }

    /// What the disk has for sure, if the power failed now, mounted.
    pub fn after_crash(&self) -> Self {
        Self::with(&self.disk.durable_image(), "", auto())
    }

    /// Sleeps until a write of data is in the device.
    pub fn wait_for_data(&self) {
        let data = |opf: ReqOpf| opf.op() == ReqOp::Write && !opf.contains(ReqOpf::META);
        while !self.disk.pending().iter().any(|event| data(event.opf)) {
            std::thread::yield_now();
        }
    }

    /// Nothing of any I/O is left behind: no lock, no count, no `io_end`.
    pub fn assert_idle(&self, file: &File) {
        let inode: &Inode = file.f_inode();
        assert!(!inode.is_locked(), "i_mutex is held");
        assert!(inode.i_private().i_data_sem.try_write().is_some(), "i_data_sem is held");
        assert!(!inode.i_private().aio.aio_mutex.is_locked(), "the aio mutex is held");
        assert_eq!(inode.i_dio_count(), 0, "i_dio_count");
        self.sb.drain_direct_io();
        assert!(!inode.i_private().aio.is_unwritten(), "a conversion is counted that never comes");
        let dio = &self.sb.s_fs_info().dio;
        dio.drain_trims();
        assert_eq!(dio.io_ends_available(), dio.io_ends(), "an io_end is missing");
    }

    /// Unmounts, and returns what is on the disk, which `e2fsck` has found nothing wrong with.
    pub fn finish(self) -> Vec<u8> {
        ext4_umount(&self.sb).expect("unmounting");
        self.disk.check();
        let bytes = self.disk.image();
        Image::from_bytes(&bytes).assert_clean();
        bytes
    }
}

/// What a test holds back goes on when this goes, also if the test fails meanwhile: else the threads it waits for would wait for ever.
pub struct LetGo<F: Fn()>(pub F);

impl<F: Fn()> Drop for LetGo<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// Where an operation sleeps for what others have in flight.
pub const WAITS: [&str; 4] = ["inode_dio_wait", "ext4_aiodio_wait", "direct I/O drains", "wait_on_page_writeback"];

/// An operation on a thread of its own, beside the test's.
pub struct Meanwhile<T> {
    thread: JoinHandle<T>,
    arrived: mpsc::Receiver<&'static str>,
    /// Dropped, it lets go one that was stopped.
    go: mpsc::Sender<()>,
}

impl<T: Send + 'static> Meanwhile<T> {
    /// Begins `op`, which is heard of at [`WAITS`].
    pub fn start(op: impl FnOnce() -> T + Send + 'static) -> Self {
        Self::spawn(&WAITS, false, op)
    }

    /// Begins `op`, which is heard of at tracepoints `names`.
    pub fn start_with(names: &'static [&'static str], op: impl FnOnce() -> T + Send + 'static) -> Self {
        Self::spawn(names, false, op)
    }

    /// Begins `op`, and returns when it has come to tracepoint `name`, where it stays, or is over.
    pub fn up_to(name: &'static [&'static str; 1], op: impl FnOnce() -> T + Send + 'static) -> Self {
        let meanwhile = Self::spawn(name, true, op);
        meanwhile.arrives();
        meanwhile
    }

    fn spawn(names: &'static [&'static str], stop: bool, op: impl FnOnce() -> T + Send + 'static) -> Self {
        let (arrive, arrived) = mpsc::channel();
        let (go, gone) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let _tracing = on_trace(move |name| {
                // Who does not listen any more does not want it stopped again.
                if names.contains(&name) && arrive.send(name).is_ok() && stop {
                    let _ = gone.recv();
                }
            });
            op()
        });
        Self { thread, arrived, go }
    }

    /// Returns when it has come to the next of its tracepoints, or, with `None`, is over.
    pub fn arrives(&self) -> Option<&'static str> {
        self.arrived.recv().ok()
    }

    /// Whether it comes to sleep for what others have in flight, rather than to its end.
    pub fn waits(&self) -> bool {
        self.arrives().is_some_and(|name| WAITS.contains(&name))
    }

    /// Lets it go where it was stopped, and returns when it is over, with what it returned. Panics if it did.
    pub fn join(self) -> T {
        drop((self.arrived, self.go));
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// Page-aligned memory for direct I/O.
pub struct Pages {
    memory: Vec<Page>,
    len: usize,
}

#[repr(C, align(4096))]
#[derive(Clone, Copy)]
struct Page([u8; 4096]);

impl Pages {
    /// `len` bytes of `fill`.
    pub fn new(len: usize, fill: u8) -> Self {
        Self { memory: vec![Page([fill; 4096]); len.div_ceil(4096)], len }
    }

    /// A copy of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        let mut pages = Self::new(bytes.len(), 0);
        pages.bytes_mut().copy_from_slice(bytes);
        pages
    }

    /// The memory.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: pages are bytes without padding, initialised, and at least `len` of them.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr().cast(), self.len) }
    }

    /// The memory.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_mut_ptr().cast(), self.len) }
    }
}

/// A synchronous write.
pub fn write(file: &KArc<File>, pos: i64, bytes: &[u8]) -> Result<usize> {
    let iov = [IoVec::source(bytes)];
    ext4_file_write(&mut Kiocb::new_sync(file, pos), &mut IovIter::new(&iov))
}

/// A synchronous read of `len` bytes; what was read.
pub fn read(file: &KArc<File>, pos: i64, len: usize) -> Result<Vec<u8>> {
    let mut pages = Pages::new(len, 0xee);
    let iov = [IoVec::dest(pages.bytes_mut())];
    let n = ext4_file_read(&mut Kiocb::new_sync(file, pos), &mut IovIter::new(&iov))?;
    Ok(pages.bytes()[..n].to_vec())
}

/// Hears of the end of one asynchronous I/O.
#[derive(Default)]
pub struct Listener {
    told: Mutex<Vec<(usize, Result<usize>)>>,
    wake: std::sync::Condvar,
}

impl AioComplete for Listener {
    fn ki_complete(this: &KArc<Self>, ret: Result<usize>, tag: usize) {
        this.told.lock().unwrap_or_else(PoisonError::into_inner).push((tag, ret));
        this.wake.notify_all();
    }
}

impl Listener {
    /// One that has heard nothing.
    pub fn new() -> KArc<Self> {
        KArc::new(Self::default(), GFP_KERNEL).expect("memory")
    }

    /// What was told so far.
    pub fn told(&self) -> Vec<(usize, Result<usize>)> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sleeps until `n` ends were told.
    pub fn wait(&self, n: usize) -> Vec<(usize, Result<usize>)> {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        while told.len() < n {
            told = self.wake.wait(told).unwrap_or_else(PoisonError::into_inner);
        }
        told.clone()
    }
}

/// Starts an asynchronous write of memory that lives as long as the process. `tag` comes back at its end.
pub fn write_async(
    file: &KArc<File>,
    pos: i64,
    bytes: &'static [u8],
    to: &KArc<Listener>,
    tag: usize,
) -> Result<usize> {
    write_async_with(RwfFlags::empty(), file, pos, bytes, to, tag)
}

/// [`write_async`] with flags for this call.
pub fn write_async_with(
    flags: RwfFlags,
    file: &KArc<File>,
    pos: i64,
    bytes: &'static [u8],
    to: &KArc<Listener>,
    tag: usize,
) -> Result<usize> {
    // SAFETY: the memory lives for ever and is not changed.
    let mut iocb = unsafe { Kiocb::new_async(file, pos, to.clone(), tag) };
    iocb.kiocb_set_rw_flags(flags).expect("known flags");
    let iov = [IoVec::source(bytes)];
    ext4_file_write(&mut iocb, &mut IovIter::new(&iov))
}

/// Where an asynchronous read puts what it reads.
pub struct Landing {
    memory: *mut u8,
    len: usize,
    tag: usize,
}

impl Landing {
    /// What was read, once `told` has heard of its end: as much as was asked for.
    pub fn wait(&self, told: &Listener) -> Vec<u8> {
        while !told.told().iter().any(|(tag, _)| *tag == self.tag) {
            std::thread::yield_now();
        }
        // SAFETY: the memory was leaked, and the read, the only one who has it, is over.
        unsafe { std::slice::from_raw_parts(self.memory, self.len) }.to_vec()
    }
}

/// Starts an asynchronous read of `len` bytes.
pub fn read_async(
    flags: RwfFlags,
    file: &KArc<File>,
    pos: i64,
    len: usize,
    to: &KArc<Listener>,
    tag: usize,
) -> (Result<usize>, Landing) {
    let memory = Box::leak(Box::new(Pages::new(len, 0xee))).bytes_mut();
    let landing = Landing { memory: memory.as_mut_ptr(), len, tag };
    let iov = [IoVec::dest(memory)];
    // SAFETY: the memory lives for ever, and nobody looks at it before the listener was told.
    let mut iocb = unsafe { Kiocb::new_async(file, pos, to.clone(), tag) };
    iocb.kiocb_set_rw_flags(flags).expect("known flags");
    (ext4_file_read(&mut iocb, &mut IovIter::new(&iov)), landing)
}

/// How an asynchronous I/O ended that was begun with `ret`: the answer, or what the listener hears as its `nth`.
pub fn ended(ret: Result<usize>, told: &Listener, nth: usize) -> Result<usize> {
    match ret {
        Err(EIOCBQUEUED) => told.wait(nth)[nth - 1].1,
        ret => ret,
    }
}

/// Calls `hook` whenever this thread comes to tracepoint `name`.
pub fn at(name: &'static str, hook: impl Fn() + 'static) -> Tracing {
    on_trace(move |here| {
        if here == name {
            hook();
        }
    })
}

/// Completes those of the requests that are in the device still.
pub fn complete(disk: &RamDisk, ids: impl IntoIterator<Item = u64>) {
    for id in ids {
        // Else its end came by itself.
        let _ = disk.complete(id);
    }
}

/// Reads and writes of data that are in the device, oldest first.
pub fn data_in_flight(disk: &RamDisk) -> Vec<u64> {
    let data = |event: &Event| (OpMask::READ | OpMask::WRITE | OpMask::NOT_META).matches(event.opf);
    disk.pending().into_iter().filter(data).map(|event| event.id).collect()
}

/// Memory for [`write_async`].
pub fn leaked(len: usize, fill: u8) -> &'static [u8] {
    Box::leak(Box::new(Pages::new(len, fill))).bytes()
}
