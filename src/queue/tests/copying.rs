//! A copy of the store while it is in use.

use std::os::unix::fs::FileExt as _;

use super::*;
use crate::queue::copying::{CopyAsk, CopyPages};
use crate::queue::inspect::{Answer, Files, Question};

async fn ask(rig: &Rig, ask: CopyAsk) -> CopyPages {
    match rig.inlet.ask(Question::Copy(ask)).await.unwrap() {
        Answer::Copy(pages) => pages,
        other => panic!("{other:?}"),
    }
}

fn copy(from: &fs::File, to: &fs::File, told: &CopyPages) {
    let mut page = [0; 1024];
    for (first, last) in told.spans.iter().copied() {
        for number in first..=last {
            page.fill(0);
            // What is in the log only is not in the file yet: it comes again.
            drop(from.read_exact_at(&mut page, (number - 1) * 1024));
            to.write_all_at(&page, (number - 1) * 1024).unwrap();
        }
    }
}

#[tokio::test]
async fn a_copy_that_is_made_while_the_store_changes_is_the_store_of_one_moment() {
    let (dir, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut rig = Rig::start(settings(dir.path()));
    let mut next = 0;
    // About two lengths of the log for each call.
    let mut write = async |rig: &mut Rig| {
        rig.append_all((next..next + 6000).map(|number| numbered(number, 900))).await;
        next += 6000;
        let outlet = rig.outlet("cloud");
        for _ in 0..3 {
            let rows = outlet.next(900, 1 << 20).await.unwrap();
            outlet.commit(rows.iter().step_by(2).map(|row| delivered(row.sequence)).collect()).await.unwrap();
        }
    };
    write(&mut rig).await;
    let from = fs::File::open(dir.path().join("queue.db")).unwrap();
    let to = fs::File::create(target.path().join("queue.db")).unwrap();
    let CopyPages { copy: number, .. } = ask(&rig, CopyAsk::Begin).await;
    for _ in 0..2 {
        let told = ask(&rig, CopyAsk::Take { copy: number }).await;
        // Before and after these pages are read they change.
        write(&mut rig).await;
        copy(&from, &to, &told);
        write(&mut rig).await;
    }
    let refused = ask(&rig, CopyAsk::Last { copy: number }).await;
    assert!(!refused.is_still && refused.left > 4096, "{refused:?}");
    let told = ask(&rig, CopyAsk::Take { copy: number }).await;
    assert!(told.left == 0, "{told:?}");
    copy(&from, &to, &told);
    let last = ask(&rig, CopyAsk::Last { copy: number }).await;
    assert!(last.is_still, "{last:?}");
    let then = rig.inlet.stats().await.unwrap();
    // Little enough for the file to stand still.
    rig.append_all((0..200).map(|number| numbered(number, 100))).await;
    copy(&from, &to, &last);
    to.set_len(last.pages * 1024).unwrap();
    assert!(ask(&rig, CopyAsk::End { copy: number }).await.is_still);
    let gone = rig.inlet.ask(Question::Copy(CopyAsk::End { copy: number })).await.unwrap();
    assert!(matches!(gone, Answer::Refused { .. }), "{gone:?}");

    crate::queue::restored::prepare(target.path(), dir.path(), "then").unwrap();
    fs::write(target.path().join("lock"), "").unwrap();
    let files = Files::open(target.path(), &Clock::new(ClockSource::Trusted)).unwrap();
    assert_eq!(files.look_through().unwrap(), None);
    let Answer::Stats(stats) = files.ask(&Question::Stats).unwrap() else { panic!("no stats") };
    assert_eq!(stats.messages, then.messages);
    drop(files);
    let mut copied = Rig::start(settings(target.path()));
    assert_eq!(copied.waiting("cloud").await, then.streams["cloud"].waiting);
    assert_eq!(copied.drain("cloud").await.len() as u64, then.messages);
    copied.stop().await;
    rig.stop().await;
}

#[tokio::test]
async fn while_the_last_pages_are_copied_the_log_grows_but_not_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(settings(dir.path()));
    rig.append_all((0..100).map(|number| numbered(number, 900))).await;
    let CopyPages { copy: number, .. } = ask(&rig, CopyAsk::Begin).await;
    ask(&rig, CopyAsk::Take { copy: number }).await;
    assert!(ask(&rig, CopyAsk::Last { copy: number }).await.is_still);
    let length = || fs::metadata(dir.path().join("queue.db-wal")).unwrap().len();
    // Six usual lengths of the log, and nobody asks any more.
    for _ in 0..6 {
        rig.append_all((0..4000).map(|number| numbered(number, 900))).await;
    }
    assert!(length() < 6 * 4000 * 1048, "{} bytes", length());
    let end = ask(&rig, CopyAsk::End { copy: number }).await;
    assert!(!end.is_still, "what was copied may be of several moments: {end:?}");
    assert!(ask(&rig, CopyAsk::Take { copy: number }).await.spans.iter().map(|(f, l)| l - f + 1).sum::<u64>() > 4000);
    rig.stop().await;
}
