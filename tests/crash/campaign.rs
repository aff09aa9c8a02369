// SPDX-License-Identifier: GPL-2.0-only
//! All moments of many runs, several images each.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use ext4_dio_tests::crash_disk::{Choice, Moment, Trace};
use ext4_dio_tests::differential::words;
use ext4_dio_tests::oplang::Rng;

use crate::check::{Counts, Extra, Scratch, check};
use crate::unit::{Run, Unit, run};

/// An image that takes longer hangs.
const HANGS: Duration = Duration::from_secs(120);

/// What is wanted.
pub(crate) struct Campaign {
    /// Runs have numbers from here on.
    pub(crate) first: u64,
    /// So many images are enough.
    pub(crate) images: usize,
    /// Or so much time.
    pub(crate) until: Option<Instant>,
    /// This run alone, and of it this moment, this choice, and this moment and choice of the recovery.
    pub(crate) only: Option<Only>,
    /// The file for the image that failed.
    pub(crate) keep: Option<PathBuf>,
}

/// One image.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Only {
    /// The run.
    pub(crate) seed: u64,
    /// The moment.
    pub(crate) point: Option<usize>,
    /// What is on the disk.
    pub(crate) choice: Option<Choice>,
    /// The same of the recovery.
    pub(crate) again: Option<(usize, Choice)>,
}

/// Images that were seen.
#[derive(Default)]
struct Known(Mutex<HashSet<u64>>);

impl Known {
    fn is_new(&self, sum: u64) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(sum)
    }
}

/// What a campaign has come to.
#[derive(Default)]
pub(crate) struct Outcome {
    /// Figures.
    pub(crate) counts: Counts,
    known: Known,
    failures: Mutex<Vec<String>>,
}

/// Where a worker is.
struct Place<'a> {
    campaign: &'a Campaign,
    outcome: &'a Outcome,
    scratch: Scratch,
    /// What it is at, and since when.
    at: &'a Mutex<(Instant, String)>,
}

impl Outcome {
    /// What went wrong, if something did.
    pub(crate) fn failures(&self) -> Vec<String> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn fail(&self, text: String) {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).push(text);
    }

    fn images(&self) -> usize {
        self.counts.images.load(Ordering::Relaxed)
    }
}

/// Runs a campaign, a thread for each CPU. It ends at the first failure.
pub(crate) fn campaign(campaign: &Campaign) -> Outcome {
    let outcome = Outcome::default();
    let next = AtomicU64::new(campaign.first);
    let workers = std::thread::available_parallelism().map_or(2, usize::from);
    let places: Vec<Mutex<(Instant, String)>> =
        (0..workers).map(|_| Mutex::new((Instant::now(), String::new()))).collect();
    std::thread::scope(|s| {
        let threads: Vec<_> = places
            .iter()
            .map(|at| {
                let place = || Place { campaign, outcome: &outcome, scratch: Scratch::new(), at };
                let next = &next;
                s.spawn(move || place().work(next))
            })
            .collect();
        while !threads.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            std::thread::park_timeout(Duration::from_millis(100));
            for place in &places {
                let (since, what) = place.lock().unwrap_or_else(PoisonError::into_inner).clone();
                if since.elapsed() > HANGS && !what.is_empty() {
                    eprintln!("HANG: {what}");
                    std::process::abort();
                }
            }
        }
    });
    outcome
}

impl Place<'_> {
    fn work(&self, next: &AtomicU64) {
        loop {
            let seed = match &self.campaign.only {
                Some(only) if next.load(Ordering::Relaxed) != u64::MAX => {
                    if next.swap(u64::MAX, Ordering::Relaxed) == u64::MAX {
                        break;
                    }
                    only.seed
                }
                Some(_) => break,
                None => next.fetch_add(1, Ordering::Relaxed),
            };
            if self.enough() || !self.outcome.failures().is_empty() {
                break;
            }
            self.now(&format!("EXT4_DIO_SEED={seed}: the run itself"));
            match catch_unwind(|| run(Unit::new(seed), false)).unwrap_or_else(|panic| Err(words(&*panic))) {
                Ok(run) => self.moments(&run),
                Err(e) => self.outcome.fail(format!("EXT4_DIO_SEED={seed}, the run itself: {e}")),
            }
        }
        self.now("");
    }

    /// Whether there have been enough images, or enough time.
    fn enough(&self) -> bool {
        self.campaign.only.is_none()
            && match self.campaign.until {
                Some(until) => Instant::now() >= until,
                None => self.outcome.images() >= self.campaign.images,
            }
    }

    fn now(&self, what: &str) {
        *self.at.lock().unwrap_or_else(PoisonError::into_inner) = (Instant::now(), what.to_string());
    }

    fn moments(&self, run: &Run) {
        let counts = &self.outcome.counts;
        counts.runs.fetch_add(1, Ordering::Relaxed);
        let mut moment = Moment::new(&run.trace, run.base.clone());
        let mut rng = Rng(run.unit.seed ^ 0xc4a5);
        for &point in &run.trace.points {
            if self.enough() {
                return;
            }
            moment.advance(point);
            let only = self.campaign.only.as_ref();
            if only.and_then(|only| only.point).is_some_and(|only| only != point) {
                continue;
            }
            counts.points.fetch_add(1, Ordering::Relaxed);
            let choices = match only.and_then(|only| only.choice) {
                Some(choice) => vec![choice],
                None => choices(moment.volatile(), &mut rng),
            };
            for choice in choices {
                let (sum, sectors) = moment.choose(choice);
                if !self.outcome.known.is_new(sum) {
                    continue;
                }
                counts.images.fetch_add(1, Ordering::Relaxed);
                let what = format!("EXT4_DIO_SEED={} EXT4_DIO_POINT={point} EXT4_DIO_CHOICE={choice}", run.unit.seed);
                let torn = matches!(choice, Choice::Torn(_));
                if !self.image(run, point, &moment.image(&sectors), &what, (sum, torn)) {
                    return;
                }
            }
        }
    }

    /// Checks one image, and sometimes crashes in its recovery; whether to go on.
    fn image(&self, run: &Run, point: usize, bytes: &[u8], what: &str, (sum, torn): (u64, bool)) -> bool {
        let every = |n: u64| (sum >> 20).is_multiple_of(n);
        let all = self.campaign.only.is_some();
        let extra = Extra { fsck: true, theirs: all || every(16), linux: all || every(400), used: every(8), torn };
        let Some(recovery) = self.one(run, point, bytes, what, extra) else { return false };
        let again = self.campaign.only.as_ref().and_then(|only| only.again);
        if recovery.written.is_empty() || !(again.is_some() || every(400)) {
            return true;
        }
        let trace = Trace::new(recovery, false);
        let mut moment = Moment::new(&trace, bytes.to_vec());
        let mut rng = Rng(sum);
        for &second in &trace.points {
            moment.advance(second);
            let choices = match again {
                Some((point, choice)) if point == second => vec![choice],
                Some(_) => continue,
                None => choices(moment.volatile(), &mut rng),
            };
            for choice in choices.into_iter().take(2) {
                let (sum, sectors) = moment.choose(choice);
                if !self.outcome.known.is_new(sum) {
                    continue;
                }
                self.outcome.counts.second.fetch_add(1, Ordering::Relaxed);
                let what = format!("{what} EXT4_DIO_AGAIN={second},{choice}");
                let torn = torn || matches!(choice, Choice::Torn(_));
                let extra = Extra { fsck: (sum >> 20).is_multiple_of(4), torn, ..Extra::default() };
                if !extra.fsck {
                    self.outcome.counts.without.fetch_add(1, Ordering::Relaxed);
                }
                if self.one(run, point, &moment.image(&sectors), &what, extra).is_none() {
                    return false;
                }
            }
        }
        true
    }

    fn one(
        &self,
        run: &Run,
        point: usize,
        bytes: &[u8],
        what: &str,
        extra: Extra,
    ) -> Option<kernel_shim::block::ramdisk::Recording> {
        self.now(what);
        let counts = &self.outcome.counts;
        let checked =
            catch_unwind(AssertUnwindSafe(|| check(run, point, bytes.to_vec(), extra, &self.scratch, counts)));
        match checked.unwrap_or_else(|panic| Err(words(&*panic))) {
            Ok(recovery) => Some(recovery),
            Err(e) => {
                let kept = self.campaign.keep.as_ref().map(|dir| {
                    let path = dir.join(format!("crash-{}-{point}.img", run.unit.seed));
                    let told = std::fs::write(&path, bytes).map_or_else(|e| e.to_string(), |()| "kept".to_string());
                    format!("\nimage {told}: {}", path.display())
                });
                let story = run.world.story(point);
                self.outcome.fail(format!(
                    "{e}\n{}\n{story}again: {what} cargo test -p ext4-dio-tests --test crash -- --exact crash_images{}",
                    run.unit.name(),
                    kept.unwrap_or_default(),
                ));
                None
            }
        }
    }
}

/// Several, for `n` writes that are not durable.
fn choices(n: u32, rng: &mut Rng) -> Vec<Choice> {
    let mut out = vec![Choice::Prefix(n)];
    if n > 0 {
        out.push(Choice::None);
        out.push(Choice::Torn(rng.next_u64()));
    }
    if n > 1 {
        out.push(Choice::Drop(rng.below(u64::from(n)) as u32));
        out.push(Choice::Prefix(1 + rng.below(u64::from(n) - 1) as u32));
        out.push(Choice::Subset(rng.next_u64()));
        out.push(Choice::Torn(rng.next_u64()));
    }
    out
}
