// SPDX-License-Identifier: GPL-2.0-only
//! Tests of memory: who owns what and how often it is dropped, with memory and without.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Barrier;
use std::vec::Vec as StdVec;
use std::{format, thread};

use super::{AllocError, Arc, Flags, GFP_ATOMIC, GFP_KERNEL, GFP_NOFS, GFP_NOIO, GFP_ZERO, KBox, KVec, Pool, PoolBox};
use crate::error::{Error, code};

/// Counts how many of its kind there are.
#[derive(Debug)]
struct Counted {
    id: u32,
    alive: Rc<Cell<i32>>,
}

impl Counted {
    fn new(id: u32, alive: &Rc<Cell<i32>>) -> Counted {
        alive.set(alive.get() + 1);
        Counted { id, alive: alive.clone() }
    }
}

impl Clone for Counted {
    fn clone(&self) -> Counted {
        Counted::new(self.id, &self.alive)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.alive.set(self.alive.get() - 1);
    }
}

fn ids(vec: &[Counted]) -> StdVec<u32> {
    vec.iter().map(|counted| counted.id).collect()
}

#[test]
fn flags_are_those_of_linux() {
    assert_eq!(GFP_ATOMIC.bits(), 0x820);
    assert_eq!(GFP_NOIO.bits(), 0xc00);
    assert_eq!(GFP_NOFS.bits(), 0xc40);
    assert_eq!(GFP_KERNEL.bits(), 0xcc0);
    assert_eq!(GFP_ZERO, Flags::ZERO);
}

#[test]
fn no_memory_is_enomem() {
    assert_eq!(Error::from(AllocError), code::ENOMEM);
}

#[test]
fn kbox_owns_its_value() {
    let alive = Rc::new(Cell::new(0));
    let mut one = KBox::new(Counted::new(1, &alive), GFP_KERNEL).unwrap();
    one.id = 11;
    assert_eq!((one.id, alive.get()), (11, 1));
    let inner = KBox::into_inner(one);
    assert_eq!((inner.id, alive.get()), (11, 1));
    drop(inner);
    assert_eq!(alive.get(), 0);

    let raw = KBox::into_raw(KBox::new(Counted::new(2, &alive), GFP_KERNEL).unwrap());
    assert_eq!(alive.get(), 1);
    // SAFETY: From `into_raw`, coerced.
    let object: KBox<dyn std::fmt::Debug> = unsafe { KBox::from_raw(raw as *mut dyn std::fmt::Debug) };
    assert!(format!("{object:?}").contains("id: 2"));
    drop(object);
    assert_eq!(alive.get(), 0);
}

#[test]
fn values_are_aligned_and_may_be_empty() {
    #[repr(align(4096))]
    struct Page([u8; 4096]);
    for _ in 0..4 {
        let page = KBox::new(Page([7; 4096]), GFP_KERNEL).unwrap();
        assert_eq!(&raw const *page as usize % 4096, 0);
        assert!(page.0.iter().all(|&byte| byte == 7));
        let page = Arc::new(Page([8; 4096]), GFP_KERNEL).unwrap();
        assert_eq!(&raw const *page as usize % 4096, 0);
        assert_eq!(page.clone().0[4095], 8);
    }
    KBox::new((), GFP_KERNEL).unwrap();
    let mut nothing = KVec::new();
    for _ in 0..100 {
        nothing.push((), GFP_KERNEL).unwrap();
    }
    assert_eq!((nothing.len(), nothing.pop()), (100, Some(())));
    assert_eq!(nothing.into_iter().count(), 99);
}

#[test]
fn zeroed_memory_is_asked_for_and_kept() {
    let vec = KVec::<u64>::with_capacity(512, GFP_KERNEL | GFP_ZERO).unwrap();
    // SAFETY: The capacity is allocated, and was asked to be zero.
    let memory = unsafe { core::slice::from_raw_parts(vec.as_ptr(), vec.capacity()) };
    assert_eq!(memory.len(), 512);
    assert!(memory.iter().all(|&word| word == 0));
}

#[test]
fn arc_counts() {
    let alive = Rc::new(Cell::new(0));
    let mut one = Arc::new(Counted::new(1, &alive), GFP_KERNEL).unwrap();
    Arc::get_mut(&mut one).unwrap().id = 3;
    let two = one.clone();
    assert!(Arc::ptr_eq(&one, &two));
    assert_eq!((Arc::strong_count(&one), two.id, alive.get()), (2, 3, 1));
    assert!(Arc::get_mut(&mut one).is_none());
    assert!(Arc::into_inner(one).is_none());
    assert_eq!(alive.get(), 1);
    let inner = Arc::into_inner(two).unwrap();
    assert_eq!((inner.id, alive.get()), (3, 1));
    drop(inner);
    assert_eq!(alive.get(), 0);

    let other = Arc::new(Counted::new(4, &alive), GFP_KERNEL).unwrap();
    let raw = Arc::into_raw(other.clone());
    // SAFETY: From `into_raw`, coerced.
    let object: Arc<dyn std::fmt::Debug> = unsafe { Arc::from_raw(raw as *const dyn std::fmt::Debug) };
    drop(other);
    assert_eq!(alive.get(), 1);
    assert!(format!("{object:?}").contains("id: 4"));
    drop(object);
    assert_eq!(alive.get(), 0);
}

#[test]
fn arc_is_dropped_once_whichever_thread_is_last() {
    use std::sync::atomic::{AtomicU32, Ordering};
    static DROPS: AtomicU32 = AtomicU32::new(0);
    struct Guard;
    impl Drop for Guard {
        fn drop(&mut self) {
            DROPS.fetch_add(1, Ordering::Relaxed);
        }
    }
    let arc = Arc::new(Guard, GFP_KERNEL).unwrap();
    let start = Barrier::new(4);
    thread::scope(|scope| {
        for _ in 0..4 {
            let arc = arc.clone();
            scope.spawn(|| {
                let arc = arc;
                start.wait();
                for _ in 0..1_000_000 {
                    drop(arc.clone());
                }
            });
        }
    });
    // Every clone has been counted, there and back.
    assert_eq!((Arc::strong_count(&arc), DROPS.load(Ordering::Relaxed)), (1, 0));
    drop(arc);
    assert_eq!(DROPS.load(Ordering::Relaxed), 1);
}

#[test]
fn kvec_does_what_a_vec_does() {
    // Every sequence of five operations out of six, against std's Vec.
    for case in 0..6_u32.pow(5) {
        let alive = Rc::new(Cell::new(0));
        let mut ours = KVec::new();
        let mut model = StdVec::new();
        let mut rest = case;
        for step in 0..5 {
            let middle = model.len() / 2;
            match rest % 6 {
                0 => {
                    ours.push(Counted::new(step, &alive), GFP_KERNEL).unwrap();
                    model.push(step);
                }
                1 => assert_eq!(ours.pop().map(|counted| counted.id), model.pop()),
                2 => {
                    ours.insert(middle, Counted::new(step, &alive), GFP_KERNEL).unwrap();
                    model.insert(middle, step);
                }
                3 if !model.is_empty() => assert_eq!(ours.remove(middle).id, model.remove(middle)),
                4 => {
                    let more = [Counted::new(10 + step, &alive), Counted::new(20 + step, &alive)];
                    ours.extend_from_slice(&more, GFP_KERNEL).unwrap();
                    model.extend([10 + step, 20 + step]);
                }
                5 => {
                    ours.truncate(middle);
                    model.truncate(middle);
                }
                _ => {}
            }
            rest /= 6;
            assert_eq!(ids(&ours), model, "case {case}, step {step}");
            assert_eq!(alive.get() as usize, model.len(), "case {case}, step {step}");
        }
        let copy = ours.try_clone(GFP_KERNEL).unwrap();
        assert_eq!(ids(&copy), model);
        drop(ours);
        // An iterator that is dropped half-way drops the rest.
        let mut iter = copy.into_iter();
        assert_eq!(iter.next().map(|counted| counted.id), model.first().copied());
        assert_eq!(iter.len(), model.len().saturating_sub(1));
        drop(iter);
        assert_eq!(alive.get(), 0, "case {case}");
    }
}

#[test]
fn kvec_others() {
    let mut vec = KVec::from_elem(5_u8, 3, GFP_KERNEL).unwrap();
    assert_eq!(vec, [5, 5, 5]);
    vec.resize(5, 9, GFP_KERNEL).unwrap();
    assert_eq!(vec, [5, 5, 5, 9, 9]);
    vec[1] = 1;
    assert_eq!(vec.swap_remove(0), 5);
    assert_eq!(vec, [9, 1, 5, 9]);
    vec.retain(|&mut byte| byte != 9);
    assert_eq!(vec, [1, 5]);
    for byte in &mut vec {
        *byte += 1;
    }
    assert_eq!((&vec).into_iter().sum::<u8>(), 8);
    assert_eq!(vec.as_slice(), &[2, 6]);
    vec.clear();
    assert!(vec.is_empty() && vec.capacity() >= 5);
    vec.resize(0, 1, GFP_KERNEL).unwrap();
    assert!(vec.is_empty());

    let mut impossible = KVec::<u64>::new();
    assert_eq!(impossible.reserve(usize::MAX, GFP_KERNEL), Err(AllocError));
    assert_eq!(impossible.reserve(usize::MAX / 8, GFP_KERNEL), Err(AllocError));
    impossible.push(1, GFP_KERNEL).unwrap();
    assert_eq!(impossible.reserve(usize::MAX, GFP_KERNEL), Err(AllocError));
    assert_eq!(impossible, [1]);
}

#[test]
#[should_panic(expected = "BUG: remove 2 of 2")]
fn kvec_remove_checks_its_index() {
    let mut vec = KVec::from_elem(0, 2, GFP_KERNEL).unwrap();
    vec.remove(2);
}

#[test]
fn pool_gives_what_it_has_and_no_more() {
    let alive = Rc::new(Cell::new(0));
    let pool = Pool::<Counted, 8>::new(3, GFP_KERNEL, "test").unwrap();
    assert_eq!((pool.capacity(), pool.available(), pool.name()), (3, 3, "test"));
    let mut boxes: StdVec<PoolBox<Counted>> =
        (0..3).map(|id| pool.try_alloc(Counted::new(id, &alive)).unwrap()).collect();
    assert_eq!((pool.available(), alive.get()), (0, 3));
    // The value that does not fit comes back, and nothing is made in vain.
    assert_eq!(pool.try_alloc(Counted::new(9, &alive)).unwrap_err().id, 9);
    assert!(pool.try_alloc_with(|| unreachable!()).is_none());

    let address = &raw const *boxes[1] as usize;
    assert_eq!(PoolBox::into_inner(boxes.remove(1)).id, 1);
    assert_eq!((pool.available(), alive.get()), (1, 2));
    let again = pool.try_alloc_with(|| Counted::new(4, &alive)).unwrap();
    assert_eq!(&raw const *again as usize, address);

    let raw = PoolBox::into_raw(again);
    assert_eq!(pool.available(), 0);
    // SAFETY: From `into_raw`.
    let mut again = unsafe { PoolBox::from_raw(raw) };
    again.id += 1;
    assert_eq!((again.id, boxes[0].id, boxes[1].id), (5, 0, 2));
    drop(again);
    boxes.clear();
    assert_eq!((pool.available(), alive.get()), (3, 0));
}

#[test]
fn pool_may_move_and_be_empty() {
    let pool = Pool::<u64, 4>::new(4, GFP_KERNEL, "moves").unwrap();
    let one = pool.try_alloc(1).unwrap();
    let pool = KBox::new(pool, GFP_KERNEL).unwrap();
    drop(one);
    assert_eq!(pool.available(), 4);
    let none = Pool::<u64, 4>::new(0, GFP_KERNEL, "empty").unwrap();
    assert_eq!(none.try_alloc(7).unwrap_err(), 7);
}

#[test]
fn objects_outlive_a_dropped_pool() {
    let alive = Rc::new(Cell::new(0));
    let pool = Pool::<Counted, 2>::new(2, GFP_KERNEL, "leaks on purpose").unwrap();
    let mut one = pool.try_alloc(Counted::new(1, &alive)).unwrap();
    drop(pool);
    one.id = 5;
    assert_eq!((one.id, alive.get()), (5, 1));
    drop(one);
    assert_eq!(alive.get(), 0);
}

#[test]
fn a_slot_survives_a_panic_in_its_initialiser_and_in_its_drop() {
    struct Bomb(bool);
    impl Drop for Bomb {
        fn drop(&mut self) {
            assert!(!self.0, "as the test wants it");
        }
    }
    let pool = Pool::<Bomb, 1>::new(1, GFP_KERNEL, "bombs").unwrap();
    let init = std::panic::AssertUnwindSafe(|| pool.try_alloc_with(|| panic!("as the test wants it")));
    assert!(std::panic::catch_unwind(init).is_err());
    assert_eq!(pool.available(), 1);
    let bomb = std::panic::AssertUnwindSafe(pool.try_alloc(Bomb(true)).ok().unwrap());
    assert!(std::panic::catch_unwind(move || drop(bomb)).is_err());
    assert_eq!(pool.available(), 1);
}

#[test]
fn pool_under_threads_gives_no_object_twice() {
    const THREADS: usize = 4;
    let pool = Pool::<[usize; 4], 3>::new(3, GFP_KERNEL, "contended").unwrap();
    let (mut got, mut missed) = (0, 0);
    let start = Barrier::new(THREADS);
    thread::scope(|scope| {
        let threads: StdVec<_> = (0..THREADS)
            .map(|me| {
                let (pool, start) = (&pool, &start);
                scope.spawn(move || {
                    start.wait();
                    let (mut got, mut missed) = (0_u32, 0_u32);
                    for round in 0..20_000 {
                        match pool.try_alloc([me, round, 0, 0]) {
                            Ok(mut object) => {
                                object[2] = me;
                                object[3] = round;
                                assert_eq!(*object, [me, round, me, round]);
                                got += 1;
                            }
                            Err(value) => {
                                assert_eq!(value, [me, round, 0, 0]);
                                missed += 1;
                            }
                        }
                    }
                    (got, missed)
                })
            })
            .collect();
        for thread in threads {
            let result = thread.join().unwrap();
            got += result.0;
            missed += result.1;
        }
    });
    assert_eq!((got + missed) as usize, THREADS * 20_000);
    assert_eq!(pool.available(), 3);
}

/// More than one CPU keeps to itself; threads that are alive together are on different CPUs.
#[test]
fn pool_is_used_up_by_whom_it_may() {
    const OBJECTS: usize = 80;
    let pool = Pool::<usize, OBJECTS>::new(OBJECTS, GFP_KERNEL, "all CPUs'").unwrap();
    let turn = std::sync::Mutex::new(());
    let start = Barrier::new(4);
    thread::scope(|scope| {
        for me in 0..4 {
            let (pool, turn, start) = (&pool, &turn, &start);
            scope.spawn(move || {
                crate::sched::current();
                start.wait();
                // What the thread before has given back is there for this one, wherever it is kept.
                let _turn = turn.lock().unwrap();
                let all: StdVec<_> = (0..OBJECTS).map(|_| pool.try_alloc(me).unwrap()).collect();
                assert_eq!((pool.try_alloc(me).unwrap_err(), pool.available()), (me, 0));
                drop(all);
                assert_eq!(pool.available(), OBJECTS);
            });
        }
    });
}

#[cfg(feature = "fault-injection")]
mod faults {
    use super::*;
    use crate::alloc::fault::{allocations, fail_nth_allocation};

    /// Everything that allocates, once; what it fails with, if it does.
    fn subject(alive: &Rc<Cell<i32>>) -> Result<u32, AllocError> {
        let boxed = KBox::new(Counted::new(1, alive), GFP_KERNEL)?;
        let arc = Arc::new(Counted::new(2, alive), GFP_NOFS)?;
        let mut vec = KVec::with_capacity(1, GFP_KERNEL)?;
        vec.push(Counted::new(3, alive), GFP_KERNEL)?;
        vec.push(Counted::new(4, alive), GFP_KERNEL)?;
        let pool = Pool::<Counted, 2>::new(2, GFP_KERNEL, "faults")?;
        let pooled = pool.try_alloc(Counted::new(5, alive)).map_err(|_| AllocError)?;
        let other = pool.try_alloc_with(|| Counted::new(6, alive)).ok_or(AllocError)?;
        Ok(boxed.id + arc.id + vec[0].id + vec[1].id + pooled.id + other.id)
    }

    #[test]
    fn each_allocation_can_fail_and_leaks_nothing() {
        let alive = Rc::new(Cell::new(0));
        let before = allocations();
        assert_eq!(subject(&alive), Ok(21));
        let count = allocations() - before;
        // Box, Arc, twice the vector, two of the pool, two objects.
        assert_eq!(count, 8);
        for n in 1..=count {
            let fault = fail_nth_allocation(n);
            assert_eq!(subject(&alive), Err(AllocError), "allocation {n}");
            assert!(fault.fired());
            // Once only.
            assert_eq!(subject(&alive), Ok(21));
            assert_eq!(alive.get(), 0, "allocation {n}");
        }
        let fault = fail_nth_allocation(count + 1);
        assert_eq!(subject(&alive), Ok(21));
        assert!(!fault.fired());
        drop(fault);
        assert_eq!(subject(&alive), Ok(21));
    }

    #[test]
    fn a_vector_that_cannot_grow_stays_as_it_was() {
        let mut vec = KVec::from_elem(1_u32, 4, GFP_KERNEL).unwrap();
        let fault = fail_nth_allocation(1);
        assert_eq!(vec.push(2, GFP_KERNEL), Err(AllocError));
        drop(fault);
        let fault = fail_nth_allocation(1);
        assert_eq!(vec.insert(0, 2, GFP_KERNEL), Err(AllocError));
        drop(fault);
        let fault = fail_nth_allocation(1);
        assert_eq!(vec.extend_from_slice(&[2, 3], GFP_KERNEL), Err(AllocError));
        drop(fault);
        assert_eq!(vec, [1, 1, 1, 1]);
        // With room for one of two it takes none.
        assert_eq!((vec.pop(), vec.capacity()), (Some(1), 4));
        let fault = fail_nth_allocation(1);
        assert_eq!(vec.extend_from_slice(&[2, 3], GFP_KERNEL), Err(AllocError));
        drop(fault);
        assert_eq!(vec, [1, 1, 1]);
    }

    #[test]
    fn a_failure_is_one_threads_own() {
        let _fault = fail_nth_allocation(1);
        thread::scope(|scope| {
            scope.spawn(|| assert!(KBox::new(1, GFP_KERNEL).is_ok()));
        });
        assert!(KBox::new(1, GFP_KERNEL).is_err());
    }

    #[test]
    #[should_panic(expected = "still armed")]
    fn failures_do_not_nest() {
        let _one = fail_nth_allocation(1);
        let _two = fail_nth_allocation(1);
    }
}

#[test]
#[cfg(debug_assertions)]
#[should_panic(expected = "in interrupt context")]
fn sleeping_allocations_are_reported_in_interrupt_context() {
    let _irq = crate::sched::host::InterruptContext::enter();
    assert!(KBox::new(1, GFP_ATOMIC).is_ok());
    let _ = KBox::new(1, GFP_NOIO);
}
