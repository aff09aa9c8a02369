// SPDX-License-Identifier: GPL-2.0-only
//! Extended attributes: against a model, over remounts, as `debugfs` sees them, and what writes do to them.

use std::collections::BTreeMap;

use ext4_dio::xattr::area::ext4_xattr_block_csum;
use ext4_dio::xattr::*;
use ext4_dio::{File, Inode};
use ext4_dio_tests::dio::*;
use ext4_dio_tests::images::{Image, Mkfs, peek, poke};
use ext4_dio_tests::linux::{self, Linux};
use ext4_dio_tests::oplang::*;
use kernel_shim::alloc::Arc as KArc;
use kernel_shim::error::code::*;
use kernel_shim::error::{Error, Result};

fn get(inode: &Inode, name: &str) -> Result<Vec<u8>> {
    let len = ext4_getxattr(inode, name.as_bytes(), &mut [])?;
    let mut value = vec![0; len];
    if len > 0 {
        assert_eq!(
            ext4_getxattr(inode, name.as_bytes(), &mut vec![0; len - 1]),
            if len > 1 { Err(ERANGE) } else { Ok(1) }
        );
        assert_eq!(ext4_getxattr(inode, name.as_bytes(), &mut value), Ok(len));
    }
    Ok(value)
}

fn list(inode: &Inode) -> Vec<String> {
    let len = ext4_listxattr(inode, &mut []).expect("listing");
    let mut names = vec![0; len];
    assert_eq!(ext4_listxattr(inode, &mut names), Ok(len));
    let mut names: Vec<String> = names
        .split(|b| *b == 0)
        .filter(|n| !n.is_empty())
        .map(|n| String::from_utf8(n.to_vec()).expect("text"))
        .collect();
    names.sort();
    names
}

type Model = BTreeMap<String, Vec<u8>>;

fn compare(inode: &Inode, model: &Model, context: &str) {
    assert_eq!(list(inode), model.keys().cloned().collect::<Vec<_>>(), "{context}");
    for (name, value) in model {
        assert_eq!(get(inode, name).as_ref(), Ok(value), "{context}: {name}");
    }
}

/// What an attribute takes in its place.
fn room(name: &str, value: &[u8]) -> usize {
    let rest = name.len() - name.find('.').expect("a prefix") - 1;
    (16 + rest).next_multiple_of(4) + value.len().next_multiple_of(4)
}

/// One random call on the inode and on the model.
fn step(rng: &mut Rng, inode: &Inode, model: &mut Model, spec: &Mkfs, context: &str) {
    let prefix = ["user.", "trusted.", "security."][rng.below(3) as usize];
    let name = format!("{prefix}{}", &"abcdefghijklmnopqrstuvwxyz0123456789"[..1 + rng.below(12) as usize]);
    let known = model.contains_key(&name);
    if rng.below(3) == 0 {
        let expected = if known { Ok(()) } else { Err(ENODATA) };
        assert_eq!(ext4_removexattr(inode, name.as_bytes()), expected, "{context}: remove {name}");
        model.remove(&name);
        return;
    }
    let top = [8, 60, 200, u64::from(spec.block_size) + 50][rng.below(4) as usize];
    let value: Vec<u8> = (0..rng.below(top)).map(|_| rng.next_u64() as u8).collect();
    let flags = [XattrSet::Any, XattrSet::Create, XattrSet::Replace][rng.below(3) as usize];
    match (flags, known, ext4_setxattr(inode, name.as_bytes(), &value, flags)) {
        (XattrSet::Create, true, ret) => assert_eq!(ret, Err(EEXIST), "{context}: {name}"),
        (XattrSet::Replace, false, ret) => assert_eq!(ret, Err(ENODATA), "{context}: {name}"),
        (_, _, Ok(())) => {
            model.insert(name, value);
        }
        (_, _, Err(error)) => {
            assert_eq!(error, ENOSPC, "{context}: {name}");
            // Not as long as all others and this one fit into one block.
            let others: usize = model.iter().filter(|(n, _)| **n != name).map(|(n, v)| room(n, v)).sum();
            assert!(others + room(&name, &value) + 36 > spec.block_size as usize, "{context}: {name}: there is room");
        }
    }
}

#[test]
fn random_attributes() {
    for (seed, block_size, inode_size) in
        [(1, 4096, 256), (2, 1024, 128), (3, 1024, 256), (4, 2048, 512), (5, 4096, 1024)]
    {
        let spec = Mkfs { block_size, inode_size, ..Mkfs::default() };
        let mut m = Mount::with(&image(&spec), IN_FLIGHT, auto());
        let mut rng = Rng(seed);
        let mut models = [Model::new(), Model::new()];
        for round in 0..4 {
            let files = [m.open("/data"), m.open("/holes")];
            for op in 0..80 {
                let at = rng.below(2) as usize;
                let context = format!("seed {seed} round {round} op {op}");
                step(&mut rng, files[at].f_inode(), &mut models[at], &spec, &context);
                // An update of the inode leaves them alone.
                assert_eq!(write(&files[0], 0, Pages::new(4096, op as u8).bytes()), Ok(4096));
                models[0].remove("security.capability");
                compare(files[at].f_inode(), &models[at], &context);
            }
            drop(files);
            let bytes = m.finish();
            debugfs_agrees(&bytes, "data", &models[0]);
            m = Mount::with(&bytes, IN_FLIGHT, auto());
            compare(m.open("/data").f_inode(), &models[0], "remounted");
            compare(m.open("/holes").f_inode(), &models[1], "remounted");
        }
        m.finish();
    }
}

fn debugfs_agrees(bytes: &[u8], file: &str, model: &Model) {
    let image = Image::from_bytes(bytes);
    let text = image.debugfs(&format!("ea_list {file}"));
    for (name, value) in model {
        assert!(text.contains(&format!("{name} ({})", value.len())), "{name} is not in: {text}");
    }
    let Some((name, value)) = model.iter().next() else { return };
    let out = image.path().with_extension("value");
    image.debugfs(&format!("ea_get -f {} {file} {name}", out.display()));
    assert_eq!(std::fs::read(&out).unwrap_or_default(), *value, "{name}");
}

#[test]
fn what_is_refused() {
    let m = Mount::new(IN_FLIGHT);
    let file = m.open("/data");
    let inode: &Inode = file.f_inode();
    let long = format!("user.{}", "n".repeat(251));
    let refused: [(&str, usize, Error); 7] = [
        ("", 1, ERANGE),
        (&long, 1, ERANGE),
        ("user.", 1, EINVAL),
        ("system.posix_acl_access", 1, EOPNOTSUPP),
        ("nobody.knows", 1, EOPNOTSUPP),
        ("user.large", 65537, E2BIG),
        ("user.large", 65536, ENOSPC),
    ];
    for (name, len, error) in refused {
        assert_eq!(ext4_setxattr(inode, name.as_bytes(), &vec![1; len], XattrSet::Any), Err(error), "{name}");
    }
    assert_eq!(ext4_setxattr(inode, &long.as_bytes()[..255], b"", XattrSet::Any), Ok(()));
    assert_eq!(get(inode, &long[..255]), Ok(vec![]));
    assert_eq!(ext4_getxattr(inode, b"user.none", &mut []), Err(ENODATA));
    assert_eq!(ext4_removexattr(inode, b"user.none"), Err(ENODATA));
    drop(file);
    let ro = Mount::with(&m.finish(), "ro", auto());
    let file = ext4_dio::ext4_open(&ro.sb, "/data", kernel_shim::fs::OpenFlags::empty()).expect("opening");
    assert_eq!(ext4_setxattr(file.f_inode(), b"user.a", b"", XattrSet::Any), Err(EROFS));
    assert_eq!(list(file.f_inode()), [&long[..255]]);
    drop(file);
    ro.finish();
}

/// A write takes `security.capability` away, and nothing else.
#[test]
fn a_write_takes_capabilities_away() {
    let m = Mount::new(IN_FLIGHT);
    let file = m.open("/data");
    let inode: &Inode = file.f_inode();
    for _ in 0..3 {
        assert_eq!(ext4_setxattr(inode, b"user.kept", b"1", XattrSet::Any), Ok(()));
        assert_eq!(ext4_setxattr(inode, b"security.capability", &[1; 20], XattrSet::Any), Ok(()));
        assert_eq!(ext4_need_remove_privs(inode), Ok(true));
        let i_mutex = inode.lock();
        assert_eq!(ext4_file_remove_privs(&i_mutex), Ok(()));
        assert_eq!(ext4_need_remove_privs(inode), Ok(false));
        i_mutex.unlock();
        assert_eq!(list(inode), ["user.kept"]);
    }
    drop(file);
    m.finish();
}

/// Two inodes with one block, as Linux makes them: who changes it gets a copy, and the other keeps what it had.
#[test]
fn a_shared_block_is_copied() {
    let spec = Mkfs { block_size: 1024, ..Mkfs::default() };
    let big = vec![7u8; 600];
    let m = Mount::with(&image(&spec), IN_FLIGHT, auto());
    assert_eq!(ext4_setxattr(m.open("/data").f_inode(), b"user.big", &big, XattrSet::Any), Ok(()));
    let sb_seed = m.sb.s_fs_info().s_csum_seed;
    let before = Image::from_bytes(&m.finish());
    let field = |text: &str, name: &str| -> u64 {
        let at = text.find(name).unwrap_or_else(|| panic!("{name} in {text}")) + name.len();
        text[at..]
            .trim_start()
            .split(|c: char| !c.is_ascii_digit())
            .next()
            .expect("a number")
            .parse()
            .expect("a number")
    };
    let block = field(&before.debugfs("stat data"), "File ACL:");
    assert_ne!(block, 0);
    let sectors = field(&before.debugfs("stat holes"), "Blockcount:");
    before.debugfs_script(&[
        format!("set_inode_field holes file_acl {block}"),
        format!("set_inode_field holes blocks {}", sectors + 2),
    ]);
    let disk = before.bdev();
    let mut bytes = peek(&disk, block * 1024, 1024);
    bytes[4..8].copy_from_slice(&2u32.to_le_bytes());
    let csum = ext4_xattr_block_csum(sb_seed, ext4_dio::ext4::Fsblk(block), &bytes);
    bytes[16..20].copy_from_slice(&csum.to_le_bytes());
    let mut all = before.bytes();
    all[block as usize * 1024..][..1024].copy_from_slice(&bytes);
    poke(&disk, block * 1024, &bytes);
    Image::from_bytes(&all).assert_clean();

    for (first, second) in [("/data", "/holes"), ("/holes", "/data")] {
        let m = Mount::with(&all, IN_FLIGHT, auto());
        let files: [KArc<File>; 2] = [m.open(first), m.open(second)];
        assert_eq!(ext4_setxattr(files[0].f_inode(), b"user.more", &[1; 150], XattrSet::Any), Ok(()));
        assert_eq!(get(files[0].f_inode(), "user.big"), Ok(big.clone()));
        assert_eq!(list(files[1].f_inode()), ["user.big"]);
        assert_eq!(get(files[1].f_inode(), "user.big"), Ok(big.clone()));
        drop(files);
        let m = Mount::with(&m.finish(), IN_FLIGHT, auto());
        let files = [m.open(first), m.open(second)];
        // Alone now: in place; and then nothing is left of either.
        assert_eq!(ext4_setxattr(files[1].f_inode(), b"user.big", &[8; 500], XattrSet::Replace), Ok(()));
        assert_eq!(ext4_removexattr(files[1].f_inode(), b"user.big"), Ok(()));
        assert_eq!(get(files[0].f_inode(), "user.big"), Ok(big.clone()));
        drop(files);
        m.finish();

        let m = Mount::with(&all, IN_FLIGHT, auto());
        let files = [m.open(first), m.open(second)];
        assert_eq!(ext4_removexattr(files[0].f_inode(), b"user.big"), Ok(()));
        assert_eq!(get(files[1].f_inode(), "user.big"), Ok(big.clone()));
        drop(files);
        m.finish();
    }
}

/// Linux finds what we set, and we find what it sets.
#[test]
fn linux_agrees() {
    if !linux::available() {
        return;
    }
    for (block_size, inode_size) in [(1024, 128), (4096, 256)] {
        let spec = Mkfs { block_size, inode_size, ..Mkfs::default() };
        let m = Mount::with(&image(&spec), IN_FLIGHT, auto());
        let file = m.open("/data");
        let set = |name: &str, tag, len| {
            let value = xattr_value(name, tag, len);
            assert_eq!(ext4_setxattr(file.f_inode(), name.as_bytes(), &value, XattrSet::Any), Ok(()));
            (name.to_string(), value)
        };
        let mut model: Model =
            [set("user.small", 1, 5), set("trusted.empty", 2, 0), set("user.big", 3, 500), set("security.x", 4, 7)]
                .into();
        drop(file);
        let image = Image::from_bytes(&m.finish());
        let mut linux = Linux::mount(&image.path(), "").expect("Linux mounts it");
        for (name, value) in &model {
            let got = linux.apply(&Op::GetXattr { path: "/data".into(), name: name.clone() });
            assert_eq!(got, Ok(Out::Bytes(value.clone())), "{name}");
        }
        let (name, len, tag) = ("user.linux".to_string(), 300, 9);
        let made =
            linux.apply(&Op::SetXattr { path: "/data".into(), name: name.clone(), len, tag, how: XattrHow::Any });
        assert_eq!(made, Ok(Out::Done));
        model.insert(name.clone(), xattr_value(&name, tag, len));
        assert_eq!(linux.apply(&Op::RemoveXattr { path: "/data".into(), name: "user.small".into() }), Ok(Out::Done));
        model.remove("user.small");
        drop(linux);
        let m = Mount::with(&image.bytes(), IN_FLIGHT, auto());
        compare(m.open("/data").f_inode(), &model, "after Linux");
        assert_eq!(ext4_removexattr(m.open("/data").f_inode(), name.as_bytes()), Ok(()));
        m.finish();
    }
}

/// Damage is told from what is not there, whatever byte it is in.
#[test]
fn damaged_attributes() {
    for features in ["", "^metadata_csum"] {
        let spec = Mkfs { block_size: 1024, features, ..Mkfs::default() };
        let m = Mount::with(&image(&spec), IN_FLIGHT, auto());
        let file = m.open("/data");
        assert_eq!(ext4_setxattr(file.f_inode(), b"user.big", &[7; 300], XattrSet::Any), Ok(()));
        let block = file.f_inode().i_private().i_file_acl.load(std::sync::atomic::Ordering::Relaxed);
        drop(file);
        let good = m.finish();
        // The header, the entry, the value.
        for at in [0, 4, 7, 8, 16, 32, 33, 34, 35, 36, 40, 42, 43, 48, 52, 1000] {
            let mut bytes = good.clone();
            bytes[block as usize * 1024 + at] ^= 0xff;
            let m = Mount::with(&bytes, "errors=continue", auto());
            let file = m.open("/data");
            let ret = ext4_getxattr(file.f_inode(), b"user.big", &mut [0; 1024]);
            if features.is_empty() {
                assert!(matches!(ret, Err(EFSBADCRC | EFSCORRUPTED)), "byte {at}: {ret:?}");
            }
            let _ = ext4_setxattr(file.f_inode(), b"user.b", &[7; 300], XattrSet::Any);
        }
    }
}
