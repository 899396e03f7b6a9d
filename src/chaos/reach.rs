//! When a write may not be refused: while every gateway reaches the bucket, whatever happens to the storage nodes. Pure.

use super::network::Size;
use super::schedule::{Fault, How, Target};

/// Do these faults leave every gateway to its clients and to the bucket?
pub(crate) fn promised<'a>(size: Size, open: impl Iterator<Item = &'a Fault>) -> bool {
    let needed = |target: &Target| match target {
        Target::Gateway(at) => *at < size.gateways,
        Target::Bucket | Target::Clients => true,
        Target::Node(_) => false,
    };
    let mut open = open;
    !open.any(|fault| match fault.how {
        How::Kill | How::Pause | How::Wipe | How::Slow | How::Storm(_) => fault.targets.iter().any(needed),
        How::Cut(_) => fault.links.iter().any(|link| needed(&link.from) && needed(&link.to)),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::network::needed;
    use super::super::s3::Storm;
    use super::super::schedule::{FaultKind, Link, Schedule, Shape};
    use super::*;

    fn fault(how: How, targets: &[Target], links: &[(Target, Target)]) -> Fault {
        let mut schedule = Schedule::new(1, 3, 1, &[FaultKind::Pause]);
        let mut fault = schedule.find(|_| true).into_iter().collect::<Vec<_>>().remove(0);
        fault.lasting = Duration::from_secs(1);
        (fault.how, fault.targets) = (how, targets.to_vec());
        fault.links = links.iter().map(|(from, to)| Link { from: *from, to: *to }).collect();
        fault
    }

    #[test]
    fn only_what_is_between_clients_gateways_and_the_bucket_excuses() {
        let (node, gateway, bucket) = (Target::Node(0), Target::Gateway(0), Target::Bucket);
        let size = Size { nodes: 3, gateways: 1 };
        let fine = [
            fault(How::Kill, &[node, Target::Node(1), Target::Node(2)], &[]),
            fault(How::Slow, &[node], &[]),
            fault(How::Cut(Shape::TwoWay), &[node, bucket], &[(node, bucket), (bucket, node)]),
            fault(How::Cut(Shape::OneWay), &[gateway, node], &[(gateway, node)]),
        ];
        assert!(promised(size, fine.iter()));
        let excuses = [
            fault(How::Pause, &[bucket], &[]),
            fault(How::Kill, &[gateway], &[]),
            fault(How::Slow, &[gateway], &[]),
            fault(How::Storm(Storm::Slow), &[bucket], &[]),
            fault(How::Cut(Shape::OneWay), &[bucket, gateway], &[(bucket, gateway)]),
            fault(How::Cut(Shape::Isolation), &[gateway], &[(Target::Clients, gateway)]),
        ];
        for excuse in excuses {
            assert!(!promised(size, fine.iter().chain([&excuse])), "{excuse:?}");
        }
        assert!(needed(&[FaultKind::Kill, FaultKind::Cut]) && !needed(&[FaultKind::Kill, FaultKind::S3]));
    }
}
