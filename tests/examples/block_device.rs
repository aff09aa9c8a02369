// SPDX-License-Identifier: GPL-2.0-only
//! A block device for ext4-dio, in full: memory behind a lock. `cargo run --example block_device -- IMAGE /FILE` reads an image into it,
//! mounts that, and writes the file's first block past every cache. The image itself stays as it is.

use ext4_dio::file::{ext4_file_read, ext4_file_write};
use ext4_dio::{Kiocb, ext4_mount, ext4_open, ext4_umount};
use kernel_shim::alloc::{Arc, GFP_KERNEL};
use kernel_shim::block::{Bdev, BlockDevice, QueueLimits, ReqOp, Request};
use kernel_shim::fs::{IoVec, IovIter, OpenFlags};
use std::sync::Mutex;

struct Memory(Mutex<Vec<u8>>);

impl BlockDevice for Memory {
    fn limits(&self) -> &QueueLimits {
        &QueueLimits::DEFAULT
    }
    fn nr_sectors(&self) -> u64 {
        self.0.lock().unwrap().len() as u64 >> 9
    }
    fn queue_rq(&self, rq: Request) {
        let mut disk = self.0.lock().unwrap();
        let mut at = rq.sector() as usize * 512;
        if matches!(rq.op(), ReqOp::Read | ReqOp::Write) {
            rq.for_each_vec(|vec| {
                let (there, here) = (disk[at..].as_mut_ptr(), vec.bv_page.as_ptr());
                let (from, to) = if rq.op() == ReqOp::Read { (there, here) } else { (here, there) };
                // SAFETY: the request lies within the disk; its memory is the submitter's until the request has ended.
                unsafe { std::ptr::copy_nonoverlapping(from, to, vec.bv_len as usize) };
                at += vec.bv_len as usize;
            });
        }
        drop(disk); // The end of one request may queue the next from inside.
        rq.end(Ok(()));
    }
    fn commit_rqs(&self) {} // Nothing was held back.
}

#[repr(align(4096))]
struct Block([u8; 4096]);

/// Writes the first block of the file, and tells what is read from there afterwards.
pub(crate) fn write_and_read(image: &[u8], path: &str) -> kernel_shim::error::Result<(usize, usize, [u8; 8])> {
    let bdev = Bdev::new(Arc::new(Memory(Mutex::new(image.to_vec())), GFP_KERNEL)?)?;
    let sb = ext4_mount(bdev, "noatime")?;
    let file = ext4_open(&sb, path, OpenFlags::O_RDWR | OpenFlags::O_DIRECT)?;
    let (data, mut back) = (Block([b'!'; 4096]), Block([0; 4096]));
    let n = ext4_file_write(&mut Kiocb::new_sync(&file, 0), &mut IovIter::new(&[IoVec::source(&data.0)]))?;
    let m = ext4_file_read(&mut Kiocb::new_sync(&file, 0), &mut IovIter::new(&[IoVec::dest(&mut back.0)]))?;
    drop(file);
    ext4_umount(&sb)?;
    Ok((n, m, back.0[..8].try_into().unwrap()))
}

fn main() {
    let [_, image, path] = &std::env::args().collect::<Vec<_>>()[..] else { panic!("usage: block_device IMAGE /FILE") };
    let (n, m, bytes) = write_and_read(&std::fs::read(image).expect(image), path).expect(path);
    println!("{n} bytes written, {m} read back; they begin with {bytes:?}");
}
