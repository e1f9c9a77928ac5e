//! What must not break the ceiling, nor hold up the one thread while it is kept.

use super::*;

/// Large enough that a quarter of it is more than the reserve.
fn middling(dir: &Path, when_full: WhenFull) -> QueueSettings {
    let bytes_max = NonZeroU64::new(8 * MIB).unwrap();
    let mut settings = QueueSettings { bytes_max, when_full, ..settings(dir) };
    settings.streams = vec![stream("cloud", vec![rule("plant/#", "up/{topic}")])];
    settings
}

#[tokio::test]
async fn q4_retained_messages_never_fail_a_full_store() {
    for when_full in [WhenFull::Refuse, WhenFull::DropNewest, WhenFull::DropOldest] {
        let dir = tempfile::tempdir().unwrap();
        let rig = Rig::start(middling(dir.path(), when_full));
        let retain = |number: u8, body: &[u8]| Message { retain: true, ..message(&format!("local/{number}"), body) };
        rig.append(retain(0, &[1; 100])).await;
        rig.append_all((0..100).map(|number| numbered(number, 100_000))).await;
        for outcome in rig.append_all((1..=40).map(|number| retain(number, &[7; 50_000]))).await {
            assert!(matches!(outcome.unwrap().fate, Fate::Stored { streams: 0, .. }));
        }
        // What takes no more room than before is replaced all the same.
        rig.append(retain(0, &[2; 100])).await;
        let found = rig.inlet.retained(&Filter::new("local/0").unwrap(), 1).await.unwrap();
        assert_eq!(found[0].body, Body::Bytes(Bytes::from_static(&[2; 100])));
        let stats = rig.inlet.stats().await.unwrap();
        assert!(stats.bytes <= stats.bytes_max, "{when_full:?}: {stats:?}");
        let losses = rig.health.snapshot(Stamp::default()).losses;
        let not_kept = 41 - stats.retained;
        if when_full == WhenFull::DropOldest {
            assert_eq!(not_kept, 0, "the oldest messages gave way");
        } else {
            assert!(not_kept > 30 && losses["dropped-newest"] >= not_kept, "{when_full:?}: {stats:?}");
        }
        rig.stop().await;
    }
}
