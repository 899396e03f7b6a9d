//! The figures of gateways, storage nodes and the process: each part is asked when somebody looks.

use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{AsyncInstrument, Meter};
use tokio::time::Instant;

use cartwheel_cluster::seams::Seams;
use cartwheel_core::gossip::HintsHeld;
use cartwheel_core::standing::Standing;
use cartwheel_gateway::{GatewayFigures, state_name};
use cartwheel_storage_node::NodeFigures;

use super::metrics::Parts;

/// Ticks per second of processor times in /proc, on every Linux of the architectures that this runs on.
const TICKS: f64 = 100.0;

/// Makes instruments whose figures parts are asked for.
struct Shown<'a> {
    meter: &'a Meter,
    parts: &'a Parts,
}

impl Shown<'_> {
    /// A gauge of storage nodes.
    fn of_nodes(
        &self,
        (name, unit, description): (&'static str, &'static str, &'static str),
        observe: impl Fn(&NodeFigures, &mut dyn FnMut(f64, &[KeyValue])) + Send + Sync + 'static,
    ) {
        let parts = self.parts.clone();
        let gauge = self.meter.f64_observable_gauge(name).with_unit(unit).with_description(description);
        gauge
            .with_callback(move |figures| {
                parts.nodes(|node, said| observe(said, &mut with_node(node, figures)));
            })
            .build();
    }

    /// A counter of storage nodes.
    fn counted_by_nodes(
        &self,
        (name, description): (&'static str, &'static str),
        observe: impl Fn(&NodeFigures, &mut dyn FnMut(f64, &[KeyValue])) + Send + Sync + 'static,
    ) {
        let parts = self.parts.clone();
        let counter = self.meter.f64_observable_counter(name).with_description(description);
        counter
            .with_callback(move |figures| {
                parts.nodes(|node, said| observe(said, &mut with_node(node, figures)));
            })
            .build();
    }

    /// A gauge of gateways.
    fn of_gateways(
        &self,
        (name, description): (&'static str, &'static str),
        observe: impl Fn(&GatewayFigures, &mut dyn FnMut(f64, &[KeyValue])) + Send + Sync + 'static,
    ) {
        let parts = self.parts.clone();
        let gauge = self.meter.f64_observable_gauge(name).with_description(description);
        gauge
            .with_callback(move |figures| {
                parts.gateways(|node, watch| {
                    if let Some(said) = watch.figures() {
                        observe(&said, &mut with_node(node, figures));
                    }
                });
            })
            .build();
    }

    /// A counter of gateways.
    fn counted_by_gateways(
        &self,
        (name, description): (&'static str, &'static str),
        figure: impl Fn(&GatewayFigures) -> u64 + Send + Sync + 'static,
    ) {
        let parts = self.parts.clone();
        let counter = self.meter.u64_observable_counter(name).with_description(description);
        counter
            .with_callback(move |figures| {
                parts.gateways(|node, watch| {
                    if let Some(said) = watch.figures() {
                        figures.observe(figure(&said), std::slice::from_ref(node));
                    }
                });
            })
            .build();
    }

    /// A gauge of both.
    fn of_both(
        &self,
        (name, description): (&'static str, &'static str),
        of_gateway: impl Fn(&GatewayFigures) -> u64 + Send + Sync + 'static,
        of_node: impl Fn(&NodeFigures) -> u64 + Send + Sync + 'static,
    ) {
        let parts = self.parts.clone();
        let gauge = self.meter.u64_observable_gauge(name).with_description(description);
        gauge
            .with_callback(move |figures| {
                parts.gateways(|node, watch| {
                    if let Some(said) = watch.figures() {
                        figures.observe(of_gateway(&said), std::slice::from_ref(node));
                    }
                });
                parts.nodes(|node, said| figures.observe(of_node(said), std::slice::from_ref(node)));
            })
            .build();
    }

    /// A gauge of the process.
    fn of_process(
        &self,
        (name, unit, description): (&'static str, &'static str, &'static str),
        figure: impl Fn() -> Option<f64> + Send + Sync + 'static,
    ) {
        let gauge = self.meter.f64_observable_gauge(name).with_unit(unit).with_description(description);
        gauge
            .with_callback(move |figures| {
                if let Some(figure) = figure() {
                    figures.observe(figure, &[]);
                }
            })
            .build();
    }
}

/// Observes with the label of a node before the others.
fn with_node<'a>(
    node: &'a KeyValue,
    figures: &'a dyn AsyncInstrument<f64>,
) -> impl FnMut(f64, &[KeyValue]) + 'a {
    move |figure, labels| {
        let labels: Vec<KeyValue> = std::iter::once(node).chain(labels).cloned().collect();
        figures.observe(figure, &labels);
    }
}

fn label(name: &'static str, value: impl Into<opentelemetry::Value>) -> [KeyValue; 1] {
    [KeyValue::new(name, value)]
}

/// Says what is asked when somebody looks.
pub(super) fn observe(meter: &Meter, parts: &Parts) {
    let shown = Shown { meter, parts };
    of_both(&shown);
    of_gateways(&shown);
    of_storage(&shown);
    of_caches_and_hints(&shown);
    of_sync(&shown);
    of_process(&shown);
}

fn of_both(shown: &Shown<'_>) {
    shown.of_both(
        ("cartwheel.ready", "1 while /readyz says 200"),
        |said| u64::from(said.ready),
        |said| u64::from(said.ready),
    );
    shown.of_both(
        ("cartwheel.ring.version", "The newest ring that it knows"),
        |said| said.ring_version,
        |said| said.ring_version,
    );
    shown.of_both(
        ("cartwheel.ring.disagreeing.members", "Members that say they know another ring"),
        |said| said.disagreeing,
        |said| said.disagreeing,
    );
}

fn of_gateways(shown: &Shown<'_>) {
    shown.of_gateways(("http.server.active_requests", "Requests in the house"), |said, observe| {
        observe(said.active as f64, &[]);
    });
    shown.counted_by_gateways(
        ("cartwheel.hedges", "Further replicas asked because the first were slow"),
        |said| said.hedges,
    );
    shown.counted_by_gateways(
        ("cartwheel.read.repairs", "Reads that found stale homes and sent them the newer record"),
        |said| said.read_repairs,
    );
    shown.of_gateways(
        ("cartwheel.members", "Members of the ring, by state and liveness"),
        |said, observe| {
            for (state, liveness, count) in &said.members {
                let [state] = label("state", state_name(*state));
                let [liveness] = label("liveness", liveness.as_str());
                observe(*count as f64, &[state, liveness]);
            }
        },
    );
    let parts = shown.parts.clone();
    shown
        .meter
        .u64_observable_gauge("cartwheel.partitions")
        .with_description("Partitions by whether most of their homes are alive")
        .with_callback(move |figures| {
            parts.gateways(|node, watch| {
                let Some(found) = watch.partitions() else { return };
                for (quorum, count) in [("reachable", found.reachable), ("unreachable", found.unreachable)] {
                    let [quorum] = label("quorum", quorum);
                    figures.observe(count, &[node.clone(), quorum]);
                }
            });
        })
        .build();
}

fn of_storage(shown: &Shown<'_>) {
    shown.of_nodes(
        ("cartwheel.standing", "", "1 for what the node counts for, 0 for the others"),
        |said, observe| {
            for standing in [Standing::Returning, Standing::Absorbing, Standing::Counting] {
                let is_this = f64::from(u8::from(said.standing == standing));
                observe(is_this, &label("standing", standing.as_str()));
            }
        },
    );
    let not_held = "Partitions that it does not vote on because it lost data of them";
    shown.of_nodes(("cartwheel.partitions_not_held", "", not_held), |said, observe| {
        observe(said.partitions_not_held as f64, &[]);
    });
    shown.of_nodes(("cartwheel.keys", "", "Keys held"), |said, observe| observe(said.keys as f64, &[]));
    let unflushed = "Bytes of records that are not in the bucket yet";
    shown.of_nodes(("cartwheel.unflushed", "By", unflushed), |said, observe| {
        observe(said.unflushed_bytes as f64, &[]);
    });
    let lag = "Age of the oldest record that is not in the bucket yet";
    shown.of_nodes(("cartwheel.flush.lag", "s", lag), |said, observe| {
        observe(said.flush_lag.as_secs_f64(), &[]);
    });
    shown.of_nodes(("cartwheel.bucket.failing", "", "1 while flushes fail"), |said, observe| {
        observe(f64::from(u8::from(said.bucket_fails)), &[]);
    });
    shown.of_nodes(("cartwheel.segments", "", "Segments in the bucket"), |said, observe| {
        observe(said.segments as f64, &[]);
    });
    shown.of_nodes(("cartwheel.segment", "By", "Bytes of segments in the bucket"), |said, observe| {
        observe(said.segment_bytes as f64, &[]);
    });
    let quarantined = "Objects that are damaged or gone, never read again";
    shown.of_nodes(("cartwheel.quarantined.objects", "", quarantined), |said, observe| {
        observe(said.quarantined as f64, &[]);
    });
    shown.of_nodes(("cartwheel.memory", "By", "Memory by use"), |said, observe| {
        for (used_for, bytes) in said.memory {
            observe(bytes as f64, &label("use", used_for));
        }
    });
}

fn of_caches_and_hints(shown: &Shown<'_>) {
    shown.counted_by_nodes(("cartwheel.cache.requests", "Lookups in the caches"), |said, observe| {
        for (cache, used) in said.caches {
            for (outcome, count) in [("hit", used.hits), ("miss", used.misses)] {
                let [outcome] = label("outcome", outcome);
                let [cache] = label("cache", cache);
                observe(count as f64, &[cache, outcome]);
            }
        }
    });
    shown.of_nodes(("cartwheel.cache", "By", "Bytes in the caches"), |said, observe| {
        for (cache, used) in said.caches {
            observe(used.bytes as f64, &label("cache", cache));
        }
    });
    let each = |of: fn(&HintsHeld) -> f64| {
        move |said: &NodeFigures, observe: &mut dyn FnMut(f64, &[KeyValue])| {
            for held in &said.hints {
                observe(of(held), &label("target", held.target.to_string()));
            }
        }
    };
    shown.of_nodes(("cartwheel.hints", "", "Keys kept for another home"), each(|held| held.keys as f64));
    shown.of_nodes(("cartwheel.hint", "By", "Bytes kept for another home"), each(|held| held.bytes as f64));
    let age = each(|held| Duration::from_millis(held.oldest_ms).as_secs_f64());
    shown.of_nodes(("cartwheel.hint.age", "s", "Age of the oldest hint for another home"), age);
    let refused = "Hints not taken because there were too many";
    shown.counted_by_nodes(("cartwheel.hints.refused", refused), |said, observe| {
        observe(said.hints_refused as f64, &[]);
    });
}

fn of_sync(shown: &Shown<'_>) {
    let age = "Time since the pair of a partition and another home that was compared longest ago";
    shown.of_nodes(("cartwheel.sync.age", "s", age), |said, observe| {
        if let Some(age) = said.sync.age {
            observe(age.as_secs_f64(), &[]);
        }
    });
    let pairs = "Pairs of a partition and another home that were compared";
    shown.of_nodes(("cartwheel.sync.pairs", "", pairs), |said, observe| observe(said.sync.pairs as f64, &[]));
    let differing = "Keys that differed when each pair was compared last";
    shown.of_nodes(("cartwheel.sync.differing.keys", "", differing), |said, observe| {
        observe(said.sync.differing as f64, &[]);
    });
    let repaired = "Keys of those that were repaired";
    shown.of_nodes(("cartwheel.sync.repaired.keys", "", repaired), |said, observe| {
        observe(said.sync.repaired as f64, &[]);
    });
}

fn of_process(shown: &Shown<'_>) {
    shown
        .meter
        .u64_observable_gauge("cartwheel.build.info")
        .with_description("The version that runs")
        .with_callback(|figures| figures.observe(1, &label("version", env!("CARGO_PKG_VERSION"))))
        .build();
    let started = Duration::from_millis(Seams::real().clock.now_ms()).as_secs_f64();
    let since = Instant::now();
    shown.of_process(("process.start_time", "s", "When the process started, since 1970"), move || {
        Some(started)
    });
    let uptime = move || Some(since.elapsed().as_secs_f64());
    shown.of_process(("process.uptime", "s", "How long the process has been running"), uptime);
    shown.of_process(("process.resident_memory", "By", "Memory that the process takes"), resident);
    shown
        .meter
        .f64_observable_counter("process.cpu")
        .with_unit("s")
        .with_description("Processor time that the process took")
        .with_callback(|figures| {
            if let Some(seconds) = processor_time() {
                figures.observe(seconds, &[]);
            }
        })
        .build();
}

/// Bytes of memory that the process takes.
fn resident() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024.0)
}

/// Seconds of processor time that the process took.
fn processor_time() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name in parentheses may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    let ticks = |at: usize| fields.get(at)?.parse::<f64>().ok();
    Some((ticks(11)? + ticks(12)?) / TICKS)
}
