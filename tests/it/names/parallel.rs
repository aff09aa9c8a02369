// SPDX-License-Identifier: GPL-2.0-only
//! Several threads change names in the same directories.

use std::sync::mpsc;
use std::time::Duration;

use ext4_dio_tests::dio::{Mount, auto, image};
use ext4_dio_tests::images::Mkfs;
use ext4_dio_tests::oplang::Rng;
use kernel_shim::testing::on_trace;

use super::*;

const THREADS: u64 = 4;

/// Runs `work` in threads; panics if they have not come back after a time that only a deadlock takes.
fn threads(sb: &Sb, work: impl Fn(&Sb, u64) + Send + Clone + 'static) {
    let (tell, told) = mpsc::channel();
    for n in 0..THREADS {
        let (sb, work, tell) = (sb.clone(), work.clone(), tell.clone());
        std::thread::spawn(move || {
            work(&sb, n);
            drop(sb);
            let _ = tell.send(());
        });
    }
    drop(tell);
    for _ in 0..THREADS {
        match told.recv_timeout(Duration::from_secs(300)) {
            Ok(()) => {}
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("they wait for each other"),
            Err(mpsc::RecvTimeoutError::Disconnected) => panic!("a thread panicked"),
        }
    }
}

/// Every directory below `path`: its parent is what `..` says, and its links are its subdirectories.
fn check_tree(sb: &Sb, path: &str, parent: u64) -> usize {
    let here = stat(sb, path).expect("stat");
    assert_eq!(stat(sb, &format!("{path}/..")).expect("stat").ino, parent, "{path}");
    let (mut dirs, mut count) = (0, 1);
    for name in names(sb, path) {
        let child = format!("{}/{name}", path.trim_end_matches('/'));
        if stat(sb, &child).unwrap_or_else(|e| panic!("{child}: {e:?}")).mode >> 12 == 4 {
            dirs += 1;
            count += check_tree(sb, &child, here.ino);
        }
    }
    assert_eq!(here.nlink, dirs + 2, "{path}");
    count
}

#[test]
fn names_of_many_threads_in_one_directory() {
    let m = mount(&small_blocks());
    mkdir(&m.sb, "/d").expect("mkdir");
    threads(&m.sb, |sb, thread| {
        for n in 0..300 {
            create(sb, &format!("/d/{thread}-{}", long_name(n, 40))).expect("create");
            if n % 3 == 2 {
                let old = format!("/d/{thread}-{}", long_name(n - 1, 40));
                rename(sb, &old, &format!("/d/moved-{thread}-{n}"), RenameFlags::NOREPLACE).expect("rename");
            }
            if n % 3 == 1 {
                unlink(sb, &format!("/d/{thread}-{}", long_name(n - 1, 40))).expect("unlink");
            }
        }
    });
    assert_eq!(names(&m.sb, "/d").len(), THREADS as usize * 200);
    let m = remount(m);
    assert_eq!(names(&m.sb, "/d").len(), THREADS as usize * 200);
    m.finish();
}

/// Who makes one name first makes it alone.
#[test]
fn one_name_is_made_once() {
    let m = mount(&Mkfs::default());
    let made = std::sync::Arc::new(std::sync::atomic::AtomicU32::new(0));
    let count = made.clone();
    threads(&m.sb, move |sb, _| {
        for n in 0..100 {
            if create(sb, &format!("/{n}")).is_ok() {
                made.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            }
        }
    });
    assert_eq!(count.load(std::sync::atomic::Ordering::Relaxed), 100);
    m.finish();
}

/// Directories are moved into each other from all sides, made and removed, with files in them.
#[test]
fn directories_move_through_each_other() {
    let m = mount(&small_blocks());
    for a in 0..4 {
        for b in 0..3 {
            let _ = mkdir(&m.sb, &format!("/{a}"));
            mkdir(&m.sb, &format!("/{a}/{b}")).expect("mkdir");
        }
    }
    threads(&m.sb, |sb, thread| {
        let mut rng = Rng(thread);
        let path = |rng: &mut Rng| {
            let depth = 1 + rng.below(4);
            (0..depth).map(|_| format!("/{}", rng.below(5))).collect::<String>()
        };
        for _ in 0..1500 {
            let (a, b) = (path(&mut rng), path(&mut rng));
            // Most of it fails, for one reason or another; none of it may leave anything half done.
            let _ = match rng.below(9) {
                0 => mkdir(sb, &a),
                1 => rmdir(sb, &a),
                2 => create(sb, &format!("{a}/file-{}", rng.below(3))),
                3 => unlink(sb, &format!("{a}/file-{}", rng.below(3))),
                4 => link(sb, &format!("{a}/file-0"), &format!("{b}/file-{}", rng.below(3))),
                5 => rename(sb, &a, &b, RenameFlags::EXCHANGE),
                6 => rename(sb, &format!("{a}/file-0"), &format!("{b}/file-1"), RenameFlags::empty()),
                _ => rename(sb, &a, &b, RenameFlags::empty()),
            };
        }
    });
    check_tree(&m.sb, "/", 2);
    let m = remount(m);
    check_tree(&m.sb, "/", 2);
    m.finish();
}

/// One removes a directory while others make things in it: it is removed empty, or not at all.
#[test]
fn nothing_is_made_in_a_directory_that_is_removed() {
    let m = mount(&small_blocks());
    threads(&m.sb, |sb, thread| {
        for n in 0..400 {
            let dir = format!("/{}", n % 3);
            match thread {
                0 => drop(mkdir(sb, &dir)),
                1 => drop(rmdir(sb, &dir)),
                _ => {
                    let file = format!("{dir}/{thread}");
                    if create(sb, &file).is_ok() {
                        unlink(sb, &file).expect("only we remove it");
                    }
                }
            }
        }
    });
    for name in names(&m.sb, "/").iter().filter(|name| *name != "lost+found") {
        rmdir(&m.sb, &format!("/{name}")).expect("it is empty");
    }
    check_tree(&m.sb, "/", 2);
    m.finish();
}

/// One reads while others write: every name that stays is seen each time.
#[test]
fn reading_beside_changes() {
    let m = mount(&small_blocks());
    mkdir(&m.sb, "/d").expect("mkdir");
    for n in 0..100 {
        create(&m.sb, &format!("/d/stays-{n}")).expect("create");
    }
    threads(&m.sb, |sb, thread| {
        let dir = iref(sb, "/d");
        for round in 0..30 {
            if thread == 0 {
                let (mut pos, mut stays) = (0, 0);
                loop {
                    let mut list = KVec::new();
                    vfs_readdir(&dir, &mut pos, 10, &mut list).expect("readdir");
                    if list.is_empty() {
                        break;
                    }
                    stays += list.iter().filter(|d| d.name.starts_with(b"stays-")).count();
                }
                assert_eq!(stays, 100, "round {round}");
            } else {
                for n in 0..10 {
                    create(sb, &format!("/d/{thread}-{round}-{n}-{}", "z".repeat(50))).expect("create");
                }
                if round % 2 == 1 {
                    for n in 0..10 {
                        unlink(sb, &format!("/d/{thread}-{round}-{n}-{}", "z".repeat(50))).expect("unlink");
                    }
                }
            }
        }
    });
    m.finish();
}

/// One has taken the first inode of a fresh block of the table, and is about to fill that with zeros; another takes the next one, and has
/// written it by then.
#[test]
fn a_fresh_block_of_the_inode_table_is_shared() {
    let mkdir = |sb: &Sb, path: &str| {
        ext4_dio::path::path_mkdir(sb, path.as_bytes(), 0o755, &ext4_dio::path::Cred::default()).expect("mkdir");
    };
    for block_size in [1024, 2048, 4096] {
        let m = Mount::with(&image(&Mkfs { block_size, inodes: 128, ..Mkfs::default() }), "", auto());
        mkdir(&m.sb, "/a");
        mkdir(&m.sb, "/b");
        let shared = std::sync::Arc::new(std::sync::atomic::AtomicU32::new(0));
        let tracing = on_trace({
            let (sb, shared) = (m.sb.clone(), shared.clone());
            move |what| {
                if what == "ext4_new_inode: a fresh block of the table" {
                    let n = shared.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                    let sb = sb.clone();
                    std::thread::spawn(move || mkdir(&sb, &format!("/b/{n}"))).join().expect("no panic");
                }
            }
        });
        for n in 0..40 {
            mkdir(&m.sb, &format!("/a/{n}"));
        }
        drop(tracing);
        let shared = shared.load(std::sync::atomic::Ordering::SeqCst);
        assert!(shared > 0, "no fresh block");
        for n in 0..shared {
            assert!(names(&m.sb, &format!("/b/{n}")).is_empty());
        }
        m.finish();
    }
}
