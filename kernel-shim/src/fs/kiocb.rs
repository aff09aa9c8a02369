// SPDX-License-Identifier: GPL-2.0-only
//! `struct kiocb`: one read or write on its way.
//!
//! PORT: in C an asynchronous kiocb outlives its submission, and both sides touch its `private` pointer. Here what completion
//! needs (how to tell the submitter, and `private`) moves into the request before the first bio is sent, so the kiocb is the
//! submitter's alone and may be dropped when submission returns.

use core::ptr::NonNull;

use super::file::{File, OpenFlags};
use super::super_block::FileSystem;
use crate::alloc::Arc;
use crate::error::{Result, code::EOPNOTSUPP};
use crate::testing::{Fix, reverted};

bitflags::bitflags! {
    /// C's `ki_flags`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct IocbFlags: u32 {
        /// Write at the end of the file.
        #[doc(alias = "IOCB_APPEND")]
        const APPEND = 1 << 1;
        /// Past the page cache.
        #[doc(alias = "IOCB_DIRECT")]
        const DIRECT = 1 << 2;
        /// Durable data at completion.
        #[doc(alias = "IOCB_DSYNC")]
        const DSYNC = 1 << 3;
        /// Durable inode, too.
        #[doc(alias = "IOCB_SYNC")]
        const SYNC = 1 << 4;
        /// The submitter asks the device for the end instead of sleeping.
        #[doc(alias = "IOCB_HIPRI")]
        const HIPRI = 1 << 5;
        /// Rather EAGAIN than sleep before the I/O is under way.
        #[doc(alias = "IOCB_NOWAIT")]
        const NOWAIT = 1 << 7;
        /// The device has written the data through (FUA): it is durable without a sync. Set by the file system.
        #[doc(alias = "IOMAP_DIO_WRITE_THROUGH")]
        const WRITE_THROUGH = 1 << 8;
    }

    /// What `preadv2` and `pwritev2` add to one call: C's `rwf_t`.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct RwfFlags: u32 {
        /// Poll for the end.
        #[doc(alias = "RWF_HIPRI")]
        const HIPRI = 0x01;
        /// As `O_DSYNC`.
        #[doc(alias = "RWF_DSYNC")]
        const DSYNC = 0x02;
        /// As `O_SYNC`.
        #[doc(alias = "RWF_SYNC")]
        const SYNC = 0x04;
        /// EAGAIN instead of sleeping.
        #[doc(alias = "RWF_NOWAIT")]
        const NOWAIT = 0x08;
        /// As `O_APPEND`.
        #[doc(alias = "RWF_APPEND")]
        const APPEND = 0x10;
    }
}

impl IocbFlags {
    /// What a file's flags mean for one I/O.
    pub fn from_open(flags: OpenFlags) -> Self {
        let mut f = Self::empty();
        f.set(Self::APPEND, flags.contains(OpenFlags::O_APPEND));
        f.set(Self::DIRECT, flags.contains(OpenFlags::O_DIRECT));
        f.set(Self::DSYNC, flags.contains(OpenFlags::O_DSYNC));
        f.set(Self::SYNC, flags.contains(OpenFlags::O_SYNC));
        f
    }
}

/// Whoever wants to hear of an asynchronous I/O's end.
pub trait AioComplete: Send + Sync + 'static {
    /// Called once, in any context including interrupts: it must neither sleep nor allocate.
    fn ki_complete(this: &Arc<Self>, ret: Result<usize>, tag: usize);
}

/// C's `ki_complete` with what it is called on.
pub struct KiComplete {
    func: unsafe fn(NonNull<()>, Option<Result<usize>>, usize),
    data: NonNull<()>,
    tag: usize,
}

// SAFETY: `data` is an `Arc<T>` with `T: Send + Sync`, and is used once.
unsafe impl Send for KiComplete {}

impl KiComplete {
    fn new<T: AioComplete>(to: Arc<T>, tag: usize) -> Self {
        /// # Safety
        /// `data` comes from `Arc::<T>::into_raw` and is given up here.
        unsafe fn call<T: AioComplete>(data: NonNull<()>, ret: Option<Result<usize>>, tag: usize) {
            // SAFETY: as this function demands.
            let to = unsafe { Arc::<T>::from_raw(data.as_ptr().cast_const().cast()) };
            if let Some(ret) = ret {
                T::ki_complete(&to, ret, tag);
            }
        }
        // OK to unwrap: an Arc's pointer is never null.
        let data = NonNull::new(Arc::into_raw(to).cast_mut().cast()).expect("Arc pointer is null");
        Self { func: call::<T>, data, tag }
    }

    /// Tells the submitter. Any context.
    #[inline]
    pub fn complete(self, ret: Result<usize>) {
        let (func, data, tag) = (self.func, self.data, self.tag);
        core::mem::forget(self);
        // SAFETY: `data` came from `Arc::into_raw` of the type `func` was made for, and `self`,
        // the only owner, is gone.
        unsafe { func(data, Some(ret), tag) }
    }
}

impl Drop for KiComplete {
    /// Submission ended with a result of its own; nobody is told.
    fn drop(&mut self) {
        // SAFETY: as in `complete`, which forgets `self`.
        unsafe { (self.func)(self.data, None, self.tag) }
    }
}

/// One read or write.
pub struct Kiocb<'f, F: FileSystem> {
    /// The file, which the submitter keeps open for the call; an asynchronous request takes a reference of its own.
    pub ki_filp: &'f Arc<File<F>>,
    /// Where, in bytes; moved on by a synchronous write.
    pub ki_pos: i64,
    /// Sampled from the file when the kiocb was made, so that one I/O sees one answer.
    pub ki_flags: IocbFlags,
    /// For the file system: empty at first, at the end again.
    pub private: Option<F::Private>,
    ki_complete: Option<KiComplete>,
}

impl<'f, F: FileSystem> Kiocb<'f, F> {
    /// A synchronous kiocb: the call that it is passed to sleeps until the I/O is done.
    #[doc(alias = "init_sync_kiocb")]
    #[inline]
    pub fn new_sync(file: &'f Arc<File<F>>, pos: i64) -> Self {
        let ki_flags = file.f_iocb_flags();
        Self { ki_filp: file, ki_pos: pos, ki_flags, private: None, ki_complete: None }
    }

    /// An asynchronous kiocb: the call that it is passed to may answer
    /// [`EIOCBQUEUED`](crate::error::code::EIOCBQUEUED), and then `to` is told of the end, once,
    /// with `tag`. Any other answer is the end itself, and `to` is not told.
    ///
    /// # Safety
    /// Memory that an iterator passed along with this kiocb points to stays valid, and is left alone (written: not changed;
    /// read: not looked at), until `to` was told, if the call answered `EIOCBQUEUED`.
    #[inline]
    pub unsafe fn new_async<T: AioComplete>(file: &'f Arc<File<F>>, pos: i64, to: Arc<T>, tag: usize) -> Self {
        let ki_flags = file.f_iocb_flags();
        let ki_complete = Some(KiComplete::new(to, tag));
        Self { ki_filp: file, ki_pos: pos, ki_flags, private: None, ki_complete }
    }

    /// Adds what one call asks for. [`EOPNOTSUPP`] for flags that nobody knows.
    pub fn kiocb_set_rw_flags(&mut self, flags: RwfFlags) -> Result {
        if !RwfFlags::all().contains(flags) {
            return Err(EOPNOTSUPP);
        }
        self.ki_flags.set(IocbFlags::HIPRI, flags.contains(RwfFlags::HIPRI));
        self.ki_flags.set(IocbFlags::NOWAIT, flags.contains(RwfFlags::NOWAIT));
        for (rwf, iocb) in [
            (RwfFlags::DSYNC, IocbFlags::DSYNC),
            (RwfFlags::SYNC, IocbFlags::SYNC.union(IocbFlags::DSYNC)),
            (RwfFlags::APPEND, IocbFlags::APPEND),
        ] {
            if flags.contains(rwf) {
                self.ki_flags.insert(iocb);
            }
        }
        Ok(())
    }

    /// Whether the call must not sleep before the I/O is under way.
    #[inline]
    pub fn is_nowait(&self) -> bool {
        self.ki_flags.contains(IocbFlags::NOWAIT) && !reverted(Fix::G34)
    }

    /// Whether the submitter waits.
    #[doc(alias = "is_sync_kiocb")]
    #[inline]
    pub fn is_sync(&self) -> bool {
        self.ki_complete.is_none()
    }

    /// Whether data must be durable at completion.
    #[doc(alias = "iocb_is_dsync")]
    #[inline]
    pub fn is_dsync(&self) -> bool {
        self.ki_flags.contains(IocbFlags::DSYNC) || self.ki_filp.f_inode().is_sync()
    }

    /// Moves the completion into a request; the kiocb counts as synchronous afterwards.
    #[inline]
    pub(crate) fn take_complete(&mut self) -> Option<KiComplete> {
        self.ki_complete.take()
    }
}
