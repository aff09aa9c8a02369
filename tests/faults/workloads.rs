// SPDX-License-Identifier: GPL-2.0-only
//! The workloads.

use crate::engine::Kind;
use crate::script::Step;
use crate::world::{Prepared, WORLDS, World, prepare};

/// A workload: see `script.rs` for the language.
#[derive(Clone)]
pub(crate) struct Workload {
    /// For messages and the replay.
    pub(crate) name: &'static str,
    /// Worlds it runs in by default, by number.
    worlds: &'static [usize],
    /// Worlds it can run in.
    can: &'static [usize],
    setup: String,
    script: String,
    /// Mounting may meet the fault, too.
    pub(crate) cold: bool,
    /// The disk was not unmounted before.
    dirty: bool,
    /// Of its many allocations and requests each so-manieth fails.
    stride: u64,
}

/// A workload in a world.
pub(crate) struct Task {
    /// Which.
    pub(crate) workload: Workload,
    /// Where.
    pub(crate) world: World,
    /// What with.
    pub(crate) prepared: Prepared,
    /// What is done while the fault is armed.
    pub(crate) steps: Vec<Step>,
    /// What is done afterwards.
    pub(crate) second: Vec<Step>,
}

const ALL: &[usize] = &[0, 1, 2, 3, 4, 5];
/// Those with extents.
const EXT4: &[usize] = &[0, 1, 2, 4, 5];

impl Task {
    fn new(workload: Workload, world: World) -> Self {
        let prepared = prepare(&world, &workload.setup, workload.dirty);
        let script = |dir| Step::script(&workload.script, dir, world.block);
        Self { steps: script("a"), second: script("b"), workload, world, prepared }
    }

    /// Workload and world.
    pub(crate) fn name(&self) -> String {
        format!("{}/{}", self.workload.name, self.world.name)
    }

    /// Whether attributes are looked at, too.
    pub(crate) fn xattrs(&self) -> bool {
        self.workload.name.contains("xattr")
    }

    /// Whether nobody looks after step `n`.
    pub(crate) fn sparse(&self, n: usize) -> bool {
        self.steps.len() > 60 && !n.is_multiple_of(40)
    }

    /// From one fault point to the next.
    pub(crate) fn stride(&self, kind: Kind) -> u64 {
        match kind {
            // Threads allocate little.
            Kind::AllocThreads => 1 + self.workload.stride / 8,
            _ => self.workload.stride,
        }
    }
}

fn new(name: &'static str, worlds: &'static [usize], setup: &str, script: &str) -> Workload {
    let extents = ["alloc", "keep", "zero", "collapse", "insert"].iter().any(|how| {
        let how = format!("how={how}");
        setup.contains(&how) || script.contains(&how)
    });
    let can = if extents { EXT4 } else { ALL };
    let (setup, script) = (setup.to_string(), script.to_string());
    Workload { name, worlds, can, setup, script, cold: false, dirty: false, stride: 1 }
}

/// Twelve written blocks.
const DATA: &str = "open slot=0 path=@/data flags=rdwr,creat mode=420
    write slot=0 pos=0 len=12b segs=1 tag=1 rwf=0
    fsync slot=0
    close slot=0
    ";
/// Seven written blocks, with holes between.
const HOLES: &str = "open slot=0 path=@/holes flags=rdwr,creat mode=420
    write slot=0 pos=0b len=1b segs=1 tag=2 rwf=0
    write slot=0 pos=2b len=1b segs=1 tag=2 rwf=0
    write slot=0 pos=4b len=1b segs=1 tag=2 rwf=0
    write slot=0 pos=6b len=1b segs=1 tag=2 rwf=0
    write slot=0 pos=8b len=1b segs=1 tag=2 rwf=0
    write slot=0 pos=10b len=1b segs=1 tag=2 rwf=0
    write slot=0 pos=12b len=1b segs=1 tag=2 rwf=0
    fsync slot=0
    close slot=0
    ";
/// Twelve blocks that were never written.
const UNWRITTEN: &str = "open slot=0 path=@/unw flags=rdwr,creat mode=420
    fallocate slot=0 how=alloc pos=0 len=12b
    fsync slot=0
    close slot=0
    ";

/// A file of many extents.
fn pieces(count: usize) -> String {
    let mut text = "open slot=0 path=@/pieces flags=rdwr,creat mode=420\n".to_string();
    for n in 0..count {
        text += &format!("write slot=0 pos={}b len=1b segs=1 tag=3 rwf=0\n", 2 * n);
    }
    text + "fsync slot=0\nclose slot=0\n"
}

/// Files with long names in `@/dir`.
fn names(from: usize, to: usize) -> String {
    (from..to).map(|n| format!("open slot=5 path=@/dir/{n:040} flags=rdwr,creat mode=420\n")).collect()
}

/// Direct writes.
pub(crate) fn direct() -> Vec<Workload> {
    let overwrite = "open slot=1 path=@/data flags=rdwr,direct mode=0
        write slot=1 pos=0 len=4b segs=1 tag=11 rwf=0
        write slot=1 pos=4b len=4b segs=2 tag=11 rwf=0
        fsync slot=1
        read slot=1 pos=0 len=12b segs=1";
    let overwrite_aio = "open slot=1 path=@/data flags=rdwr,direct mode=0
        aio slot=1 tag=12 list=0b+2b,4b+2b,8b+1b
        fdatasync slot=1
        write slot=1 pos=2b len=1b segs=1 tag=13 rwf=0";
    let dsync = "open slot=1 path=@/data flags=rdwr,direct,dsync mode=0
        write slot=1 pos=0 len=4b segs=1 tag=11 rwf=0
        aio slot=1 tag=12 list=4b+2b,8b+1b
        open slot=2 path=@/data flags=rdwr,direct mode=0
        write slot=2 pos=6b len=1b segs=1 tag=13 rwf=dsync";
    let holes = "open slot=1 path=@/holes flags=rdwr,direct mode=0
        write slot=1 pos=1b len=1b segs=1 tag=11 rwf=0
        aio slot=1 tag=12 list=3b+1b,5b+4b
        fsync slot=1
        read slot=1 pos=0 len=13b segs=1";
    let unwritten = "open slot=1 path=@/unw flags=rdwr,direct mode=0
        write slot=1 pos=2b len=3b segs=1 tag=11 rwf=0
        aio slot=1 tag=12 list=6b+2b,9b+1b
        fsync slot=1
        read slot=1 pos=0 len=12b segs=1";
    let unwritten_dsync = "open slot=1 path=@/unw flags=rdwr,direct,dsync mode=0
        write slot=1 pos=0b len=3b segs=1 tag=11 rwf=0
        aio slot=1 tag=12 list=6b+2b";
    let append = "open slot=1 path=@/data flags=rdwr,direct mode=0
        write slot=1 pos=0 len=1b segs=1 tag=13 rwf=append
        write slot=1 pos=13b len=2b segs=1 tag=11 rwf=0
        aio slot=1 tag=12 list=15b+2b,18b+1b
        fsync slot=1
        read slot=1 pos=0 len=20b segs=1";
    let append_dsync = "open slot=1 path=@/new flags=rdwr,direct,creat,sync mode=420
        write slot=1 pos=0 len=2b segs=1 tag=11 rwf=0
        aio slot=1 tag=12 list=2b+2b
        open slot=2 path=@/data flags=rdwr,direct,append mode=0
        write slot=2 pos=0 len=1b segs=1 tag=13 rwf=dsync";
    let unaligned = "open slot=1 path=@/data flags=rdwr,direct mode=0
        write slot=1 pos=512 len=512 segs=1 tag=11 rwf=0
        open slot=2 path=@/holes flags=rdwr,direct mode=0
        aio slot=2 tag=12 list=1536+512,5b+512
        write slot=1 pos=12b len=512 segs=1 tag=13 rwf=0
        fsync slot=1
        fsync slot=2";
    let unwritten_unaligned = "open slot=1 path=@/unw flags=rdwr,direct mode=0
        write slot=1 pos=512 len=512 segs=1 tag=11 rwf=0
        aio slot=1 tag=12 list=1b+512,5b+512
        fsync slot=1";
    vec![
        new("overwrite", &[1, 3], DATA, overwrite),
        new("overwrite-aio", &[0, 2], DATA, overwrite_aio),
        new("overwrite-dsync", &[4, 5], DATA, dsync),
        new("hole-fill", &[1, 3], HOLES, holes),
        new("unwritten-fill", &[0, 2], UNWRITTEN, unwritten),
        new("unwritten-dsync", &[1], UNWRITTEN, unwritten_dsync),
        new("append", &[0, 1], DATA, append),
        new("append-dsync", &[2, 4], DATA, append_dsync),
        new("unaligned", &[0, 3], &format!("{DATA}{HOLES}"), unaligned),
        new("unwritten-unaligned", &[1], UNWRITTEN, unwritten_unaligned),
    ]
}

/// Two of them, in one world.
pub(crate) fn few() -> Vec<Workload> {
    let few = direct().into_iter().filter(|w| matches!(w.name, "hole-fill" | "overwrite-aio"));
    few.map(|w| Workload { worlds: &[0], ..w }).collect()
}

/// Through the page cache, and reading.
pub(crate) fn buffered() -> Vec<Workload> {
    let overwrite = "open slot=1 path=@/data flags=rdwr mode=0
        write slot=1 pos=100 len=5000 segs=1 tag=11 rwf=0
        fsync slot=1
        read slot=1 pos=0 len=12b segs=1
        write slot=1 pos=3b len=1b segs=1 tag=12 rwf=dsync";
    let append = "open slot=1 path=@/data flags=rdwr mode=0
        write slot=1 pos=12b len=3b segs=1 tag=11 rwf=0
        fsync slot=1
        write slot=1 pos=15b len=700 segs=1 tag=12 rwf=0
        sync
        write slot=1 pos=16b len=700 segs=1 tag=13 rwf=0";
    let holes = "open slot=1 path=@/holes flags=rdwr mode=0
        write slot=1 pos=1b len=1b segs=1 tag=11 rwf=0
        write slot=1 pos=5b len=1500 segs=1 tag=12 rwf=0
        fdatasync slot=1
        write slot=1 pos=9b len=1b segs=1 tag=13 rwf=0
        fdatasync slot=1";
    let unwritten = "open slot=1 path=@/unw flags=rdwr mode=0
        write slot=1 pos=1b len=2b segs=1 tag=11 rwf=0
        fsync slot=1
        write slot=1 pos=5b len=3000 segs=1 tag=12 rwf=0";
    let both = "open slot=1 path=@/data flags=rdwr mode=0
        open slot=2 path=@/data flags=rdwr,direct mode=0
        write slot=1 pos=0 len=4b segs=1 tag=11 rwf=0
        write slot=2 pos=2b len=4b segs=1 tag=12 rwf=0
        read slot=2 pos=0 len=8b segs=1
        read slot=1 pos=0 len=8b segs=1
        fsync slot=1";
    let commit = "open slot=1 path=@/new flags=rdwr,creat mode=420
        write slot=1 pos=0 len=3b segs=1 tag=11 rwf=0
        open slot=2 path=@/other flags=rdwr,creat mode=420
        fsync slot=2
        fsync slot=1
        write slot=1 pos=3b len=3b segs=1 tag=12 rwf=0
        mkdir path=@/d mode=493
        sync";
    let reading = "open slot=1 path=@/data flags=rdwr mode=0
        read slot=1 pos=0 len=3b segs=1
        open slot=2 path=@/pieces flags=rdwr,direct mode=0
        read slot=2 pos=0 len=30b segs=2
        fiemap slot=2
        seekdata slot=2 pos=1b
        seekhole slot=2 pos=2b
        readdir path=@ chunk=3
        stat path=@/holes
        drop
        read slot=1 pos=3b len=9b segs=1
        statfs";
    vec![
        new("buffered-overwrite", &[2, 3], DATA, overwrite),
        new("buffered-append", &[0, 3], DATA, append),
        new("buffered-holes", &[1, 3], HOLES, holes),
        new("buffered-unwritten", &[0, 2], UNWRITTEN, unwritten),
        new("buffered-and-direct", &[4, 5], DATA, both),
        new("commit-with-data", &[0, 3], "", commit),
        new("reading", &[0, 3], &format!("{DATA}{HOLES}{}", pieces(20)), reading),
    ]
}

/// Truncate and its family.
pub(crate) fn space() -> Vec<Workload> {
    let truncate = "truncate path=@/data size=3b
        open slot=1 path=@/holes flags=rdwr mode=0
        ftruncate slot=1 size=5000
        fsync slot=1
        ftruncate slot=1 size=20b
        write slot=1 pos=19b len=100 segs=1 tag=11 rwf=0
        sync";
    let truncate_pieces = "open slot=1 path=@/pieces flags=rdwr mode=0
        ftruncate slot=1 size=31b
        fsync slot=1
        open slot=2 path=@/pieces flags=rdwr,trunc mode=0
        sync";
    let punch = "open slot=1 path=@/data flags=rdwr mode=0
        fallocate slot=1 how=punch pos=2b len=3b
        fallocate slot=1 how=punch pos=700 len=1000
        fsync slot=1
        open slot=2 path=@/pieces flags=rdwr mode=0
        fallocate slot=2 how=punch pos=9b len=20b
        fsync slot=2";
    let zero = "open slot=1 path=@/data flags=rdwr mode=0
        fallocate slot=1 how=zero pos=2b len=3b
        fallocate slot=1 how=zerokeep pos=700 len=9000
        fsync slot=1";
    let alloc = "open slot=1 path=@/data flags=rdwr mode=0
        fallocate slot=1 how=alloc pos=10b len=6b
        fallocate slot=1 how=keep pos=20b len=6b
        open slot=2 path=@/pieces flags=rdwr mode=0
        fallocate slot=2 how=alloc pos=0b len=12b
        fsync slot=1
        fsync slot=2";
    let collapse = "open slot=1 path=@/data flags=rdwr mode=0
        fallocate slot=1 how=collapse pos=2b len=3b
        fsync slot=1
        open slot=2 path=@/pieces flags=rdwr mode=0
        fallocate slot=2 how=collapse pos=9b len=8b
        sync";
    let insert = "open slot=1 path=@/data flags=rdwr mode=0
        fallocate slot=1 how=insert pos=2b len=3b
        fsync slot=1
        open slot=2 path=@/pieces flags=rdwr mode=0
        fallocate slot=2 how=insert pos=9b len=8b
        sync";
    let grow = "open slot=1 path=@/grow flags=rdwr,creat,direct mode=420
        write slot=1 pos=0b len=1b segs=1 tag=11 rwf=0
        write slot=1 pos=2b len=1b segs=1 tag=11 rwf=0
        write slot=1 pos=4b len=1b segs=1 tag=11 rwf=0
        write slot=1 pos=6b len=1b segs=1 tag=11 rwf=0
        write slot=1 pos=8b len=1b segs=1 tag=11 rwf=0
        write slot=1 pos=300b len=1b segs=1 tag=11 rwf=0
        fsync slot=1";
    let files = format!("{DATA}{}", pieces(20));
    vec![
        new("truncate", &[0, 2, 3], &format!("{DATA}{HOLES}"), truncate),
        new("truncate-pieces", &[0, 3], &pieces(40), truncate_pieces),
        new("punch", &[0, 3], &files, punch),
        new("zero-range", &[0, 2], &files, zero),
        new("fallocate", &[1], &files, alloc),
        new("collapse", &[0, 4], &files, collapse),
        new("insert", &[5], &files, insert),
        new("new-tree", &[0, 3], "", grow),
    ]
}

/// Names and attributes.
pub(crate) fn names_and_attributes() -> Vec<Workload> {
    let create = "open slot=1 path=@/new flags=rdwr,creat mode=420
        write slot=1 pos=0 len=700 segs=1 tag=11 rwf=0
        fsync slot=1
        mkdir path=@/dir mode=493
        open slot=2 path=@/dir/x flags=rdwr,creat,excl mode=420
        symlink target=short path=@/short
        symlink target=a{long*30} path=@/long
        link from=@/new to=@/dir/again
        readlink path=@/long
        sync";
    let tree = format!("{DATA}{HOLES}mkdir path=@/dir mode=493\nmkdir path=@/empty mode=493\n");
    let remove = "unlink path=@/data
        rmdir path=@/empty
        open slot=1 path=@/holes flags=rdwr mode=0
        unlink path=@/holes
        read slot=1 pos=0 len=2b segs=1
        sync
        close slot=1
        sync";
    let rename = "rename from=@/data to=@/dir/data how=plain
        rename from=@/dir/data to=@/holes how=plain
        rename from=@/empty to=@/dir/moved how=plain
        rename from=@/dir to=@/holes how=exchange
        chmod path=@/dir mode=384
        chown path=@/dir uid=5 gid=6
        utimens path=@/dir asec=5 ansec=6 msec=7 mnsec=8
        sync";
    let few = format!("mkdir path=@/dir mode=493\n{}", names(0, 19));
    let many = format!("mkdir path=@/dir mode=493\n{}", names(0, 56));
    let split = format!("{}unlink path=@/dir/{:040}\nfsync slot=5\n", names(19, 23), 3);
    let leaves = format!("{}rename from=@/dir/{:040} to=@/dir/{:040} how=plain\nfsync slot=5\n", names(56, 68), 7, 99);
    let tmpfile = "tmpfile slot=1 @
        write slot=1 pos=0 len=2b segs=1 tag=11 rwf=0
        linkfile slot=1 @/tmp
        tmpfile slot=2 @
        write slot=2 pos=0 len=2b segs=1 tag=12 rwf=0
        fsync slot=1
        close slot=2
        sync"
        .replace("slot=1 @", "1 @")
        .replace("slot=2 @", "2 @");
    let xattr = "setxattr path=@/data name=user.small len=20 tag=1 how=any
        setxattr path=@/data name=user.large len=700 tag=2 how=create
        setxattr path=@/data name=user.small len=24 tag=3 how=replace
        sync
        setxattr path=@/data name=user.large len=600 tag=4 how=replace
        removexattr path=@/data name=user.small
        removexattr path=@/data name=user.large
        sync";
    let files: String = (0..40).map(|n| format!("open slot=0 path=@/{n} flags=rdwr,creat mode=420\n")).collect();
    let mut rounds = String::new();
    for round in 0..12 {
        for n in 0..40 {
            rounds += &format!("setxattr path=@/{n} name=user.x len=400 tag={} how=any\n", 100 + round);
        }
        rounds += "sync\n";
    }
    vec![
        new("create", &[0, 2], "", create),
        new("remove", &[0, 3], &tree, remove),
        new("rename", &[1, 3], &tree, rename),
        new("htree-first-split", &[0, 2], &few, &split),
        new("htree-split", &[0, 3], &many, &leaves),
        new("tmpfile", &[4], "", &tmpfile),
        new("xattr", &[0, 3], DATA, xattr),
        // Each block of attributes is another block of the log, which is full three times.
        Workload { stride: 149, ..new("checkpoint-xattr", &[3], &files, &rounds) },
    ]
}

/// The mount as a whole.
pub(crate) fn mounts() -> Vec<Workload> {
    let write = "open slot=1 path=@/data flags=rdwr mode=0
        write slot=1 pos=0 len=2b segs=1 tag=11 rwf=0";
    let look = "stat path=@/data\nreaddir path=@ chunk=10";
    let recovery = format!("{DATA}{HOLES}mkdir path=@/dir mode=493\n{}unlink path=@/holes\nsync", names(0, 5));
    let orphans = format!(
        "{DATA}{HOLES}open slot=1 path=@/holes flags=rdwr mode=0\nunlink path=@/holes\nsync\ntmpfile 2 @\n\
         write slot=2 pos=0 len=2b segs=1 tag=9 rwf=0\nfsync slot=2"
    );
    let freeze = format!(
        "{write}
        freeze
        stat path=@/data
        thaw
        write slot=1 pos=2b len=2b segs=1 tag=12 rwf=0
        sync"
    );
    let options = format!(
        "{write}
        close slot=1
        options ro
        stat path=@/data
        options rw
        mkdir path=@/dir mode=493
        options commit=7,nobarrier
        options barrier"
    );
    let remount = format!(
        "{write}\nmkdir path=@/dir mode=493\nremount\nopen slot=1 path=@/data flags=rdwr mode=0\nread slot=1 pos=0 len=3b segs=1"
    );
    let cold = |workload: Workload| Workload { cold: true, ..workload };
    vec![
        cold(new("mount", &[0, 2, 3], DATA, look)),
        cold(Workload { dirty: true, ..new("recovery", &[0, 3], &recovery, look) }),
        cold(Workload { dirty: true, ..new("orphans", &[0, 3], &orphans, look) }),
        new("freeze", &[0, 2], DATA, &freeze),
        new("options", &[0, 1], DATA, &options),
        new("remount", &[3], DATA, &remount),
    ]
}

/// The tasks of `workloads`: in their own worlds, or with `all` in each that they can run in.
pub(crate) fn tasks(workloads: Vec<Workload>, all: bool, wanted: impl Fn(&str, &str) -> bool) -> Vec<Task> {
    let mut tasks = Vec::new();
    for workload in workloads {
        let worlds = if all { workload.can } else { workload.worlds };
        for &n in worlds {
            // What recovers has a journal.
            let fits = WORLDS[n].journal() || !workload.dirty;
            if fits && wanted(workload.name, WORLDS[n].name) {
                tasks.push(Task::new(workload.clone(), WORLDS[n]));
            }
        }
    }
    tasks
}
