// SPDX-License-Identifier: GPL-2.0-only
//! What cannot be done, and how one hears of it: as from Linux. And what is left after.

use ext4_dio::ext4::InodeFlags as Ext4Flags;
use kernel_shim::error::Error;
use kernel_shim::error::code::*;
use kernel_shim::fs::InodeFlags;

use super::*;

/// `/d/e/`, `/f`, `/full/x`, `/to-f` and `/to-d`, links to `/f` and `/d`, and `/loop`, one to itself.
fn some_names() -> Mount {
    let m = mount(&small_blocks());
    for dir in ["/d", "/d/e", "/full"] {
        mkdir(&m.sb, dir).expect("mkdir");
    }
    for file in ["/f", "/full/x"] {
        create(&m.sb, file).expect("create");
    }
    for (target, path) in [("f", "/to-f"), ("d/", "/to-d"), ("loop", "/loop"), ("nowhere", "/dangling")] {
        symlink(&m.sb, target, path).expect("symlink");
    }
    m
}

fn open(sb: &Sb, path: &str, flags: OpenFlags) -> Result {
    path_open(sb, path.as_bytes(), flags, 0o600, &CRED).map(drop)
}

#[track_caller]
fn all(expected: Error, results: impl IntoIterator<Item = Result>) {
    for (n, result) in results.into_iter().enumerate() {
        assert_eq!(result, Err(expected), "number {n}");
    }
}

#[test]
fn errors_are_those_of_linux() {
    let m = some_names();
    let sb = &m.sb;
    let long = "n".repeat(256);
    let none = RenameFlags::empty();
    let make = |path: &str| {
        let file = path_mknod(sb, path.as_bytes(), 0o100_600, 0, &CRED);
        [mkdir(sb, path), file, symlink(sb, "t", path), link(sb, "/f", path)]
    };
    for path in ["/f", "/d", "/", "/.", "/d/..", "/to-f", "/dangling", "/full/x"] {
        all(EEXIST, make(path));
    }
    all(ENOENT, make("/none/x"));
    all(ENOENT, make("/dangling/x"));
    all(ENOTDIR, make("/f/x"));
    all(ELOOP, make("/loop/x"));
    all(ENAMETOOLONG, make(&format!("/{long}")));
    all(ENOENT, [symlink(sb, "t", "/new/"), link(sb, "/f", "/new/"), path_mknod(sb, b"/new/", 0o100_600, 0, &CRED)]);
    all(ENOENT, [mkdir(sb, ""), symlink(sb, "", "/new"), unlink(sb, "/none"), rmdir(sb, "/none")]);
    all(ENOENT, [link(sb, "/none", "/new"), rename(sb, "/none", "/new", none)]);
    all(EISDIR, [unlink(sb, "/d"), unlink(sb, "/"), unlink(sb, "/d/."), unlink(sb, "/d/")]);
    all(
        ENOTDIR,
        [
            unlink(sb, "/f/"),
            unlink(sb, "/to-f/"),
            rmdir(sb, "/f"),
            rmdir(sb, "/to-d"),
            unlink(sb, "/f/x"),
            unlink(sb, "/to-d/"),
        ],
    );
    all(EINVAL, [rmdir(sb, "/d/."), path_readlink(sb, b"/f").map(drop)]);
    all(ENOTEMPTY, [rmdir(sb, "/full"), rmdir(sb, "/d/.."), rmdir(sb, "/d")]);
    all(EBUSY, [rmdir(sb, "/"), rename(sb, "/", "/new", none), rename(sb, "/f", "/d/..", none)]);
    all(EBUSY, [rename(sb, "/d/.", "/new", none)]);
    all(EPERM, [link(sb, "/d", "/new"), path_mknod(sb, b"/new", 0o040_755, 0, &CRED)]);
    // A target that does not fit a block; a shorter one does.
    all(ENAMETOOLONG, [symlink(sb, &"t".repeat(1024), "/new"), symlink(sb, &"t".repeat(5000), "/new")]);
    symlink(sb, &"t".repeat(1023), "/longest").expect("it fits");
    let m = remount(m);
    assert_eq!(path_readlink(&m.sb, b"/longest").expect("readlink").len(), 1023);
    unlink(&m.sb, "/longest").expect("unlink");
    m.finish();
}

#[test]
fn renames_that_cannot_be() {
    let m = some_names();
    let sb = &m.sb;
    let (none, swap, keep) = (RenameFlags::empty(), RenameFlags::EXCHANGE, RenameFlags::NOREPLACE);
    all(EEXIST, [rename(sb, "/f", "/to-f", keep), rename(sb, "/d", "/full", keep), rename(sb, "/f", "/d/.", keep)]);
    all(ENOENT, [rename(sb, "/f", "/new", swap), rename(sb, "/none", "/f", swap)]);
    all(EINVAL, [rename(sb, "/d", "/d/e/x", none), rename(sb, "/d", "/d/x", none), rename(sb, "/d", "/d/e", swap)]);
    all(EINVAL, [rename(sb, "/d/e", "/d", swap)]);
    all(EINVAL, [rename(sb, "/f", "/g", swap | keep), rename(sb, "/f", "/g", RenameFlags::WHITEOUT)]);
    all(
        ENOTEMPTY,
        [rename(sb, "/d/e", "/full", none), rename(sb, "/d/e", "/d", none), rename(sb, "/full/x", "/full", none)],
    );
    all(EISDIR, [rename(sb, "/f", "/d", none), rename(sb, "/f", "/d/e", none)]);
    all(ENOTDIR, [rename(sb, "/d", "/f", none), rename(sb, "/f/", "/g", none), rename(sb, "/f", "/g/", none)]);
    all(ENOTDIR, [rename(sb, "/d", "/f/", swap), rename(sb, "/f/x", "/g", none)]);
    // Nothing to do, and nothing happens.
    link(sb, "/f", "/same").expect("link");
    rename(sb, "/f", "/same", none).expect("two names of one inode");
    assert_eq!(stat(sb, "/f").expect("stat").nlink, 2);
    rename(sb, "/d", "/d", none).expect("to itself");
    m.finish();
}

#[test]
fn renames_that_can_be() {
    let m = some_names();
    let sb = &m.sb;
    let (none, swap) = (RenameFlags::empty(), RenameFlags::EXCHANGE);
    let ino = |path: &str| stat(sb, path).unwrap_or_else(|e| panic!("{path}: {e:?}")).ino;
    let nlink = |path: &str| stat(sb, path).unwrap_or_else(|e| panic!("{path}: {e:?}")).nlink;
    let (d, e, f, full) = (ino("/d"), ino("/d/e"), ino("/f"), ino("/full"));
    // A directory into another, and its parent with it.
    rename(sb, "/full", "/d/e/full/", none).expect("rename");
    assert_eq!((ino("/d/e/full"), ino("/d/e/full/.."), nlink("/"), nlink("/d/e")), (full, e, 4, 3));
    // A directory changes places with a file, and with one elsewhere.
    rename(sb, "/d/e", "/f", swap).expect("rename");
    assert_eq!((ino("/f"), ino("/d/e"), ino("/f/.."), nlink("/"), nlink("/d")), (e, f, 2, 5, 2));
    mkdir(sb, "/d/g").expect("mkdir");
    let g = ino("/d/g");
    rename(sb, "/d/g", "/f/full", swap).expect("rename");
    assert_eq!((ino("/d/g"), ino("/f/full"), ino("/d/g/.."), ino("/f/full/..")), (full, g, d, e));
    // An empty directory is replaced, a file, a symbolic link.
    rename(sb, "/d/g", "/f/full", none).expect("rename");
    assert_eq!((ino("/f/full"), ino("/f/full/.."), nlink("/d"), nlink("/f")), (full, e, 2, 3));
    rename(sb, "/d/e", "/to-f", RenameFlags::empty()).expect("rename");
    rename(sb, "/to-f", "/f/full/x", none).expect("rename");
    assert_eq!(ino("/f/full/x"), f);
    assert_eq!(names(sb, "/d"), [""; 0]);
    m.finish();
}

#[test]
fn opening() {
    let m = some_names();
    let sb = &m.sb;
    let (creat, excl, write) = (OpenFlags::O_CREAT, OpenFlags::O_EXCL, OpenFlags::O_WRONLY);
    let rd = OpenFlags::empty();
    all(EEXIST, ["/f", "/d", "/to-f", "/dangling", "/loop"].map(|path| open(sb, path, creat | excl)));
    all(EISDIR, ["/d", "/to-d", "/", "/new/", "/d/.", "/f/"].map(|path| open(sb, path, creat)));
    all(EISDIR, ["/d", "/to-d", "/d/.."].map(|path| open(sb, path, write)));
    all(ELOOP, [open(sb, "/loop", rd), open(sb, "/to-f", OpenFlags::O_NOFOLLOW), open(sb, "/loop", creat)]);
    all(ENOTDIR, [open(sb, "/f", OpenFlags::O_DIRECTORY), open(sb, "/f/", rd), open(sb, "/f/x", creat)]);
    all(ENOENT, [open(sb, "/none", rd), open(sb, "/dangling", rd), open(sb, "/none/x", creat), open(sb, "", creat)]);
    all(EINVAL, [open(sb, "/", OpenFlags::O_TMPFILE), open(sb, "/d", creat | OpenFlags::O_DIRECTORY)]);
    all(ENOTDIR, [open(sb, "/f", OpenFlags::O_TMPFILE | write)]);
    path_mknod(sb, b"/pipe", 0o010_644, 0, &CRED).expect("mknod");
    all(ENXIO, [open(sb, "/pipe", rd)]);
    for path in ["/d", "/to-d/", "/d/..", "/", "/to-f"] {
        open(sb, path, rd).unwrap_or_else(|e| panic!("{path}: {e:?}"));
    }
    // Through a link that leads nowhere, to where it leads.
    open(sb, "/dangling", creat | write).expect("it is made");
    assert_eq!(stat(sb, "/nowhere").expect("stat").mode, 0o100_600);
    open(sb, "/f", creat | OpenFlags::O_TRUNC | write).expect("it is there");
    m.finish();
}

/// Sets flags of an inode, as `chattr` would.
fn chattr(sb: &Sb, path: &str, flags: InodeFlags) {
    let inode = iref(sb, path);
    let i_mutex = inode.lock();
    inode.set_i_flags(flags);
    inode.i_private().set_flags(Ext4Flags::IMMUTABLE, flags.contains(InodeFlags::IMMUTABLE));
    inode.i_private().set_flags(Ext4Flags::APPEND, flags.contains(InodeFlags::APPEND));
    i_mutex.unlock();
}

#[test]
fn immutable_and_append_only() {
    let m = some_names();
    let sb = &m.sb;
    let none = RenameFlags::empty();
    chattr(sb, "/d", InodeFlags::IMMUTABLE);
    all(EPERM, [create(sb, "/d/x"), mkdir(sb, "/d/x"), rmdir(sb, "/d/e"), rename(sb, "/d/e", "/e", none)]);
    all(EPERM, [rmdir(sb, "/d"), rename(sb, "/d", "/new", none), rename(sb, "/f", "/d/f", none)]);
    chattr(sb, "/d", InodeFlags::APPEND);
    create(sb, "/d/x").expect("something more");
    all(EPERM, [unlink(sb, "/d/x"), rmdir(sb, "/d/e"), rename(sb, "/f", "/d/x", none)]);
    for flag in [InodeFlags::IMMUTABLE, InodeFlags::APPEND] {
        chattr(sb, "/f", flag);
        all(EPERM, [unlink(sb, "/f"), link(sb, "/f", "/g"), rename(sb, "/f", "/g", none)]);
        all(EPERM, [open(sb, "/f", OpenFlags::O_TRUNC), open(sb, "/f", OpenFlags::O_WRONLY)]);
        all(EPERM, [rename(sb, "/full/x", "/f", none)]);
    }
    chattr(sb, "/f", InodeFlags::empty());
    chattr(sb, "/d", InodeFlags::empty());
    unlink(sb, "/d/x").expect("unlink");
    unlink(sb, "/f").expect("unlink");
    m.finish();
}

#[test]
fn a_read_only_mount_says_so_unless_something_else_is_wrong() {
    let bytes = some_names().finish();
    let m = Mount::with(&bytes, "ro", auto());
    let sb = &m.sb;
    all(EROFS, [create(sb, "/new"), mkdir(sb, "/new"), unlink(sb, "/f"), unlink(sb, "/none"), rmdir(sb, "/d")]);
    all(EROFS, [link(sb, "/f", "/new"), symlink(sb, "t", "/new"), rename(sb, "/f", "/g", RenameFlags::empty())]);
    all(EROFS, [open(sb, "/f", OpenFlags::O_TRUNC), open(sb, "/", OpenFlags::O_TMPFILE | OpenFlags::O_RDWR)]);
    all(EEXIST, [mkdir(sb, "/d"), create(sb, "/f"), link(sb, "/f", "/d")]);
    all(EISDIR, [unlink(sb, "/"), open(sb, "/d", OpenFlags::O_CREAT)]);
    open(sb, "/f", OpenFlags::O_CREAT).expect("it need not be made");
    names(sb, "/");
    m.finish();
}

/// `st_nlink` of a file stops at 65000.
#[test]
fn too_many_links() {
    let m = some_names();
    let (root, f) = (iref(&m.sb, "/d"), iref(&m.sb, "/f"));
    // As if they were there; taken back before anybody counts.
    let i_mutex = f.lock();
    f.set_nlink(65_000);
    i_mutex.unlock();
    assert_eq!(vfs_link(&f, &root, b"one more"), Err(EMLINK));
    f.set_nlink(1);
    let d = iref(&m.sb, "/d");
    let was = d.i_nlink();
    d.set_nlink(65_000);
    // Without a hash tree a directory cannot stop counting.
    all(EMLINK, [mkdir(&m.sb, "/d/sub"), rename(&m.sb, "/full", "/d/full", RenameFlags::empty())]);
    d.set_nlink(was);
    drop((root, f, d));
    m.finish();
}

/// A directory with a hash tree stops counting its subdirectories beyond 65000 links, and says 1.
#[test]
fn too_many_subdirectories_are_not_counted() {
    let m = mount(&Mkfs { size_kib: 32 << 10, ..small_blocks() });
    for n in 0..60 {
        mkdir(&m.sb, &format!("/{}", long_name(n, 60))).expect("mkdir");
    }
    let root = iref(&m.sb, "/");
    let was = root.i_nlink();
    root.set_nlink(65_000);
    mkdir(&m.sb, "/new").expect("mkdir");
    assert_eq!(root.i_nlink(), 1);
    rmdir(&m.sb, "/new").expect("rmdir");
    assert_eq!(root.i_nlink(), 1);
    mkdir(&m.sb, "/new").expect("mkdir");
    assert_eq!(root.i_nlink(), 1);
    root.set_nlink(was + 1);
    rmdir(&m.sb, "/new").expect("rmdir");
    assert_eq!(root.i_nlink(), was);
    drop(root);
    m.finish();
}

/// Free blocks and inodes, when nothing is under way.
fn free(sb: &Sb) -> (u64, u64) {
    sb.drain_evictions();
    let info = sb.s_fs_info();
    (info.free_clusters(), info.free_inodes())
}

/// A full disk: what fails leaves nothing, and what is removed comes back, to the last block and inode.
#[test]
fn nothing_is_left_of_what_found_no_room() {
    for (inodes, size_kib) in [(16, 4096), (4096, 2048)] {
        let m = mount(&Mkfs { inodes, size_kib, features: "^has_journal", ..small_blocks() });
        let sb = &m.sb;
        // All there will be in the root is in its one block, or the blocks it grows by stay.
        mkdir(sb, "/d").expect("mkdir");
        let before = free(sb);
        let mut made = 0;
        let target = "t".repeat(200);
        loop {
            let path = format!("/d/{}", long_name(made, 100));
            let done = if made % 2 == 0 { mkdir(sb, &path) } else { symlink(sb, &target, &path) };
            match done {
                Ok(()) => made += 1,
                Err(error) => {
                    assert_eq!(error, ENOSPC);
                    break;
                }
            }
        }
        assert!(made >= 4, "{made}");
        let full = free(sb);
        // Some blocks are kept back for trees of extents.
        assert!(full.0 <= sb.s_fs_info().resv_clusters() + 2 || full.1 == 0, "{full:?}");
        for n in 0..20 {
            let _ = mkdir(sb, &format!("/d/more-{n}"));
            let _ = symlink(sb, &target, &format!("/d/more-too-{n}"));
        }
        assert!(free(sb).0 <= full.0 && free(sb).1 <= full.1);
        for name in names(sb, "/d") {
            let path = format!("/d/{name}");
            if stat(sb, &path).expect("stat").mode & 0o040_000 != 0
                && stat(sb, &path).expect("stat").mode & 0o120_000 != 0o120_000
            {
                rmdir(sb, &path).expect("rmdir");
            } else {
                unlink(sb, &path).expect("unlink");
            }
        }
        let grown = stat(sb, "/d").expect("stat").blocks / 2 - 1;
        assert_eq!(free(sb), (before.0 - grown, before.1));
        rmdir(sb, "/d").expect("rmdir");
        assert_eq!(free(sb), (before.0 + 1, before.1 + 1));
        m.finish();
    }
}

#[test]
fn a_file_that_is_open_outlives_its_name() {
    let m = mount(&Mkfs::default());
    let sb = &m.sb;
    let before = free(sb);
    let flags = OpenFlags::O_CREAT | OpenFlags::O_RDWR;
    let file = path_open(sb, b"/f", flags, 0o600, &CRED).expect("open");
    unlink(sb, "/f").expect("unlink");
    assert_eq!(stat(sb, "/f"), Err(ENOENT));
    assert_eq!(vfs_getattr(file.f_inode()).nlink, 0);
    assert_eq!(path_link_file(sb, &file, b"/again"), Err(ENOENT));
    assert_eq!(free(sb).1, before.1 - 1);
    drop(file);
    assert_eq!(free(sb), before);
    // A directory somebody has open: nothing is in it, and nothing comes into it.
    mkdir(sb, "/d").expect("mkdir");
    let dir = iref(sb, "/d");
    rmdir(sb, "/d").expect("rmdir");
    assert_eq!(vfs_create(&dir, b"f", 0o600, &CRED).map(drop), Err(ENOENT));
    assert_eq!(vfs_mkdir(&dir, b"f", 0o700, &CRED).map(drop), Err(ENOENT));
    assert_eq!(vfs_lookup(&dir, b"..").map(drop), Err(ENOENT));
    assert_eq!(vfs_readdir(&dir, &mut 0, 9, &mut KVec::new()), Err(ENOENT));
    create(sb, "/g").expect("create");
    let g = iref(sb, "/g");
    assert_eq!(vfs_link(&g, &dir, b"g"), Err(ENOENT));
    let root = iref(sb, "/");
    let into = vfs_rename((&root, (&b"g"[..]).into()), (&dir, (&b"g"[..]).into()), RenameFlags::empty());
    assert_eq!(into, Err(ENOENT));
    drop((dir, g, root));
    unlink(sb, "/g").expect("unlink");
    assert_eq!(free(sb), before);
    m.finish();
}

#[test]
fn a_file_without_a_name_may_get_one() {
    let m = mount(&Mkfs::default());
    let sb = &m.sb;
    let before = free(sb);
    let flags = OpenFlags::O_TMPFILE | OpenFlags::O_RDWR;
    let file = path_open(sb, b"/", flags, 0o666, &CRED).expect("open");
    let kept = path_open(sb, b"/", flags | OpenFlags::O_EXCL, 0o666, &CRED).expect("open");
    assert_eq!(vfs_getattr(file.f_inode()).nlink, 0);
    assert_eq!(path_link_file(sb, &kept, b"/kept"), Err(ENOENT));
    path_link_file(sb, &file, b"/named").expect("link");
    assert_eq!(path_link_file(sb, &file, b"/named"), Err(EEXIST));
    assert_eq!(stat(sb, "/named").expect("stat").mode, 0o100_644);
    drop((file, kept));
    assert_eq!(free(sb), (before.0, before.1 - 1));
    let m = remount(m);
    assert_eq!(stat(&m.sb, "/named").expect("stat").nlink, 1);
    m.finish();
}

#[test]
fn set_group_id_directories_pass_their_group_on() {
    let m = mount(&Mkfs::default());
    let sb = &m.sb;
    mkdir(sb, "/d").expect("mkdir");
    path_chown(sb, b"/d", None, Some(4242), true).expect("chown");
    path_chmod(sb, b"/d", 0o2775).expect("chmod");
    create(sb, "/d/f").expect("create");
    mkdir(sb, "/d/e").expect("mkdir");
    let (f, e) = (stat(sb, "/d/f").expect("stat"), stat(sb, "/d/e").expect("stat"));
    assert_eq!((f.gid, f.mode, e.gid, e.mode), (4242, 0o100_644, 4242, 0o042_755));
    m.finish();
}

/// A time that the disk has no room for is the nearest that it has, at once and not only after the next mount.
#[test]
fn times_that_do_not_fit_are_clamped() {
    use kernel_shim::time::Timespec64;
    let m = some_names();
    let set = |tv_sec: i64, tv_nsec| {
        let time = Utime::At(Timespec64 { tv_sec, tv_nsec });
        path_utimens(&m.sb, b"/f", time, time, true).expect("utimens");
        stat(&m.sb, "/f").expect("stat").mtime
    };
    let (first, last) = (i64::from(i32::MIN), i64::from(i32::MAX) + (3 << 32));
    for (asked, stored) in [
        ((last - 1, 7), (last - 1, 7)),
        ((last, 7), (last, 0)),
        ((1 << 40, 7), (last, 0)),
        ((first + 1, 7), (first + 1, 7)),
        ((-(1 << 40), 7), (first, 0)),
    ] {
        assert_eq!(set(asked.0, asked.1), Timespec64 { tv_sec: stored.0, tv_nsec: stored.1 }, "{asked:?}");
    }
    m.finish();
}

/// Times of what changes, and of the directory.
#[test]
fn changes_leave_their_time() {
    use kernel_shim::time::Timespec64;
    let m = some_names();
    let sb = &m.sb;
    let old = Timespec64 { tv_sec: 1_000_000_000, tv_nsec: 5 };
    let age = |path: &str| {
        path_utimens(sb, path.as_bytes(), Utime::At(old), Utime::At(old), true).expect("utimens");
        assert_eq!(stat(sb, path).expect("stat").mtime, old);
    };
    let changes: [(&str, &dyn Fn() -> Result); 6] = [
        ("create", &|| create(sb, "/d/x")),
        ("link", &|| link(sb, "/f", "/d/y")),
        ("rename", &|| rename(sb, "/d/y", "/d/z", RenameFlags::empty())),
        ("replace", &|| rename(sb, "/d/x", "/d/z", RenameFlags::empty())),
        ("unlink", &|| unlink(sb, "/d/z")),
        ("rmdir", &|| rmdir(sb, "/d/e")),
    ];
    for (what, change) in changes {
        age("/d");
        change().unwrap_or_else(|e| panic!("{what}: {e:?}"));
        let d = stat(sb, "/d").expect("stat");
        assert!(d.mtime > old && d.ctime >= d.mtime && d.atime == old, "{what}: {d:?}");
    }
    m.finish();
}
