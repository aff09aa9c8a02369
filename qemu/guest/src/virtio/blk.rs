// SPDX-License-Identifier: GPL-2.0-only
//! virtio-blk (virtio 1.2, 5.2 "Block Device"): negotiation and the block layer's view of it.

use alloc::{boxed::Box, format, string::String, vec::Vec};
use core::sync::atomic::Ordering::Relaxed;

use kernel_shim::{
    block::{Bdev, BlockDevice, QueueLimits, ReqOp, Request, SECTOR_SHIFT, SECTOR_SIZE},
    error::code::EOPNOTSUPP,
    sched::cpu_id,
};
use virtio_drivers::transport::{
    DeviceStatus, Transport,
    pci::{
        PciTransport,
        bus::{Command, DeviceFunction, PciRoot},
    },
};
use zerocopy::{FromBytes, IntoBytes};

use super::{
    FoundDisk, Refusal,
    pci::{Ecam, GuestHal, Interrupts},
    queue::{Queue, set_handler},
};
use crate::arch::{
    percpu::{self, MAX_CPUS},
    trap::vector,
};

/// Feature bits.
mod feature {
    pub(super) const SEG_MAX: u64 = 1 << 2;
    pub(super) const RO: u64 = 1 << 5;
    pub(super) const BLK_SIZE: u64 = 1 << 6;
    pub(super) const FLUSH: u64 = 1 << 9;
    pub(super) const TOPOLOGY: u64 = 1 << 10;
    pub(super) const MQ: u64 = 1 << 12;
    pub(super) const DISCARD: u64 = 1 << 13;
    pub(super) const WRITE_ZEROES: u64 = 1 << 14;
    pub(super) const INDIRECT_DESC: u64 = 1 << 28;
    pub(super) const VERSION_1: u64 = 1 << 32;
    /// What there is no driving the device without.
    pub(super) const NEEDED: u64 = VERSION_1 | INDIRECT_DESC;
    /// What is of use here.
    pub(super) const WANTED: u64 = NEEDED | SEG_MAX | RO | BLK_SIZE | FLUSH | TOPOLOGY | MQ | DISCARD | WRITE_ZEROES;
}

/// Offsets in the device's configuration space.
mod config {
    pub(super) const CAPACITY: usize = 0;
    pub(super) const SEG_MAX: usize = 12;
    pub(super) const BLK_SIZE: usize = 20;
    pub(super) const PHYSICAL_BLOCK_EXP: usize = 24;
    pub(super) const NUM_QUEUES: usize = 34;
    pub(super) const MAX_DISCARD_SECTORS: usize = 36;
    pub(super) const MAX_WRITE_ZEROES_SECTORS: usize = 48;
}

/// Descriptors of a queue, of which a request has three.
const MAX_QUEUE_SIZE: u16 = 1024;
/// Pieces of memory in a request: each slot has a table for so many.
const MAX_SEGMENTS: u16 = 64;
/// Bytes in a request.
const MAX_BYTES: u32 = 1 << 20;

/// A disk.
struct VirtioBlk {
    limits: QueueLimits,
    nr_sectors: u64,
    /// Largest ranges that the device takes, in sectors.
    max_discard: u32,
    max_write_zeroes: u32,
    /// By CPU.
    queues: [&'static Queue; MAX_CPUS],
    name: String,
}

impl BlockDevice for VirtioBlk {
    fn limits(&self) -> &QueueLimits {
        &self.limits
    }

    fn nr_sectors(&self) -> u64 {
        self.nr_sectors
    }

    #[inline]
    fn queue_rq(&self, rq: Request) {
        // Only a range that no data comes with can be that long.
        if rq.nr_bytes() > MAX_BYTES && self.too_long(&rq) {
            return rq.end(Err(EOPNOTSUPP));
        }
        self.queues[cpu_id() as usize % MAX_CPUS].queue_rq(rq);
    }

    #[inline]
    fn commit_rqs(&self) {
        self.queues[cpu_id() as usize % MAX_CPUS].commit();
    }

    #[inline]
    fn queue_last(&self, rq: Request) {
        if rq.nr_bytes() > MAX_BYTES && self.too_long(&rq) {
            return rq.end(Err(EOPNOTSUPP));
        }
        self.queues[cpu_id() as usize % MAX_CPUS].queue_last(rq);
    }

    fn poll(&self) -> bool {
        self.queues[cpu_id() as usize % MAX_CPUS].poll()
    }

    fn name(&self) -> &str {
        &self.name
    }
}

impl VirtioBlk {
    #[cold]
    fn too_long(&self, rq: &Request) -> bool {
        let sectors = rq.nr_bytes() >> SECTOR_SHIFT;
        match rq.op() {
            ReqOp::Discard => sectors > self.max_discard,
            ReqOp::WriteZeroes => sectors > self.max_write_zeroes,
            _ => false,
        }
    }
}

/// A device that has agreed on its features.
struct Negotiated {
    transport: PciTransport,
    features: u64,
}

impl Negotiated {
    const ALIVE: DeviceStatus = DeviceStatus::ACKNOWLEDGE.union(DeviceStatus::DRIVER).union(DeviceStatus::FEATURES_OK);

    fn new(mut transport: PciTransport) -> Result<Self, Refusal> {
        transport.set_status(DeviceStatus::empty());
        while transport.get_status() != DeviceStatus::empty() {
            core::hint::spin_loop();
        }
        transport.set_status(DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER);
        let features = transport.read_device_features() & feature::WANTED;
        if features & feature::NEEDED != feature::NEEDED {
            return Err(format!("features {features:#x} are not enough"));
        }
        transport.write_driver_features(features);
        transport.set_status(Self::ALIVE);
        if !transport.get_status().contains(DeviceStatus::FEATURES_OK) {
            return Err(format!("features {features:#x} refused"));
        }
        Ok(Self { transport, features })
    }

    fn has(&self, feature: u64) -> bool {
        self.features & feature != 0
    }

    /// A field of the configuration space, or `default` if there is none without `feature`.
    fn read<T: FromBytes + IntoBytes>(&self, feature: u64, offset: usize, default: T) -> Result<T, Refusal> {
        if !self.has(feature) {
            return Ok(default);
        }
        self.transport.read_config_space(offset).map_err(|e| format!("configuration space: {e}"))
    }

    fn limits(&self) -> Result<QueueLimits, Refusal> {
        let logical_block_size = self.read(feature::BLK_SIZE, config::BLK_SIZE, SECTOR_SIZE)?;
        let exponent = self.read(feature::TOPOLOGY, config::PHYSICAL_BLOCK_EXP, 0u8)?;
        let seg_max = self.read(feature::SEG_MAX, config::SEG_MAX, 1u32)?;
        Ok(QueueLimits {
            logical_block_size,
            physical_block_size: logical_block_size.checked_shl(exponent.into()).unwrap_or(logical_block_size),
            max_segments: seg_max.clamp(1, u32::from(MAX_SEGMENTS)) as u16,
            max_segment_size: MAX_BYTES,
            max_bytes: MAX_BYTES,
            write_cache: self.has(feature::FLUSH),
            fua: false,
            discard: self.has(feature::DISCARD),
            write_zeroes: self.has(feature::WRITE_ZEROES),
            read_only: self.has(feature::RO),
        })
    }

    /// Sets up queue `index`, which CPU `index` gets the interrupts of.
    fn start_queue(
        &mut self,
        interrupts: &Interrupts,
        index: u16,
        disk: usize,
        max_segments: u16,
        shared: bool,
    ) -> Result<&'static Queue, Refusal> {
        let size = self.transport.max_queue_size(index).min(u32::from(MAX_QUEUE_SIZE)) as u16;
        if !size.is_power_of_two() {
            return Err(format!("queue {index} has {size} entries"));
        }
        let cpu = percpu::cpu(u32::from(index));
        let doorbell = interrupts.doorbell(index)?;
        let queue: &'static Queue = Box::leak(Box::new(Queue::new(index, size, max_segments, doorbell, shared)));
        set_handler(cpu, disk, queue);
        interrupts.route(index, cpu.apic_id.load(Relaxed), vector::DISK + disk as u32)?;
        let [desc, available, used] = queue.addresses();
        self.transport.queue_set(index, size.into(), desc, available, used);
        Ok(queue)
    }
}

/// Gets a device going as disk number `disk`, for good.
pub(super) fn start(
    root: &mut PciRoot<Ecam>,
    ecam: Ecam,
    at: DeviceFunction,
    disk: usize,
) -> Result<FoundDisk, Refusal> {
    root.set_command(at, Command::MEMORY_SPACE | Command::BUS_MASTER | Command::INTERRUPT_DISABLE);
    let transport = PciTransport::new::<GuestHal, Ecam>(root, at).map_err(|e| format!("{e}"))?;
    let mut device = Negotiated::new(transport)?;
    let interrupts = Interrupts::enable(root, ecam, at)?;
    let limits = device.limits()?;
    let offered = device.read(feature::MQ, config::NUM_QUEUES, 1u16)?;
    let nr_queues = u32::from(offered).min(interrupts.vectors()).min(percpu::nr_cpus()).max(1);
    let shared = nr_queues < percpu::nr_cpus();
    let mut queues = Vec::new();
    for index in 0..nr_queues as u16 {
        queues.push(device.start_queue(&interrupts, index, disk, limits.max_segments, shared)?);
    }
    let queues = core::array::from_fn(|cpu| queues[cpu % queues.len()]);
    let depth = u32::from(queues[0].depth());
    let capacity = device.read(feature::VERSION_1, config::CAPACITY, [0u32; 2])?;
    let disk = VirtioBlk {
        limits,
        nr_sectors: u64::from(capacity[0]) | u64::from(capacity[1]) << 32,
        max_discard: device.read(feature::DISCARD, config::MAX_DISCARD_SECTORS, 0u32)?,
        max_write_zeroes: device.read(feature::WRITE_ZEROES, config::MAX_WRITE_ZEROES_SECTORS, 0u32)?,
        queues,
        name: format!("vd{}", char::from(b'a' + disk as u8)),
    };
    device.transport.set_status(Negotiated::ALIVE | DeviceStatus::DRIVER_OK);
    // Dropping the transport would reset the device.
    core::mem::forget(device.transport);
    let bdev = Bdev::new(disk).map_err(|e| format!("block layer: errno {}", -e.to_errno()))?;
    Ok(FoundDisk { bdev, queues: nr_queues, depth })
}
