//! Whose turn it is to go outside for a model that no node has.
//!
//! Nodes that start together want the same files at about the same time, and one of them is to fetch them for all. Each tells whoever asks in
//! which [`Stage`] it is, and follows three rules:
//!
//! * it waits for those to whom the files come, and for those behind them;
//! * else for those who want them as well and whose names come before its own;
//! * else it goes outside, once every other has said, since it asked all anew, that it does not want them or waits.
//!
//! Two that can ask each other never go both: who waits asks all again before it goes, and who is asking is not passed. Nobody waits in a circle:
//! who fetches waits for nobody, who is behind waits for such only, and among the rest the first by name waits for nobody. Where that one
//! fails or dies, it no longer answers so, and the next finds that it is its turn.

use plexus_types::NodeName;

use crate::progress::Stage;

/// What a node does next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turn<'a> {
    /// It waits for these, and says that it is at this stage.
    Wait(Vec<&'a NodeName>, Stage),
    /// One that would wait for this node does not know yet that it is there: it asks again at once.
    Unsettled,
    /// It goes outside.
    Own,
}

/// Does a node that is at the stage `own` go on waiting for a peer at this stage? If it waits for nobody any more, it asks all again.
///
/// One that is behind says so to others, who wait for it: it does not stay there for a peer that lost what came.
pub(super) fn goes_on(own: Stage, me: Option<&NodeName>, peer: &NodeName, stage: Stage) -> bool {
    if own == Stage::Behind { stage == Stage::Coming } else { is_ahead(me, peer, stage) }
}

/// Is this node to wait for a peer at this stage?
///
/// `me`: its own name; `None` if it cannot go outside, so that it waits for anybody who may.
fn is_ahead(me: Option<&NodeName>, peer: &NodeName, stage: Stage) -> bool {
    matches!(stage, Stage::Coming | Stage::Behind) || me.is_none_or(|me| peer < me)
}

/// Decides by what the others said, each asked since this node has last waited: those that want the model, and their stages.
pub(super) fn turn<'a>(me: Option<&NodeName>, wanting: &[(&'a NodeName, Stage)]) -> Turn<'a> {
    let those = |is: &dyn Fn(&NodeName, Stage) -> bool| -> Vec<&'a NodeName> {
        wanting.iter().filter(|(peer, stage)| is(peer, *stage)).map(|(peer, _)| *peer).collect()
    };
    let coming = those(&|_, stage| stage == Stage::Coming);
    if !coming.is_empty() {
        return Turn::Wait(coming, Stage::Behind);
    }
    let ahead = those(&|peer, stage| is_ahead(me, peer, stage));
    if !ahead.is_empty() {
        return Turn::Wait(ahead, Stage::Waiting);
    }
    let is_settled = wanting.iter().all(|(_, stage)| *stage == Stage::Waiting);
    if is_settled { Turn::Own } else { Turn::Unsettled }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> NodeName {
        text.parse().unwrap()
    }

    #[test]
    fn the_first_by_name_goes_and_the_others_wait_for_it_or_for_whoever_was_faster() {
        let [a, b, c] = ["a", "b", "c"].map(name);
        let me = Some(&b);
        assert_eq!(turn(me, &[]), Turn::Own);
        assert_eq!(turn(me, &[(&c, Stage::Asking)]), Turn::Unsettled, "c may not have heard of b when it asked");
        assert_eq!(turn(me, &[(&c, Stage::Waiting)]), Turn::Own, "it asks b again before it goes");
        assert_eq!(turn(me, &[(&a, Stage::Asking), (&c, Stage::Asking)]), Turn::Wait(vec![&a], Stage::Waiting));
        assert_eq!(turn(me, &[(&a, Stage::Waiting), (&c, Stage::Coming)]), Turn::Wait(vec![&c], Stage::Behind));
        assert_eq!(turn(me, &[(&c, Stage::Behind)]), Turn::Wait(vec![&c], Stage::Waiting), "b may not know whom it is behind");
        assert!(goes_on(Stage::Waiting, me, &a, Stage::Waiting) && !goes_on(Stage::Behind, me, &a, Stage::Waiting), "a has lost what came");
        assert_eq!(turn(None, &[(&c, Stage::Asking)]), Turn::Wait(vec![&c], Stage::Waiting), "b cannot go");
    }

    /// A node of the model below: what it is at, and what it was told since it began to ask.
    #[derive(Debug, Clone)]
    struct Node {
        stage: Option<Stage>,
        heard: Vec<(usize, Option<Stage>)>,
        waits_for: Vec<usize>,
    }

    /// Nodes that ask each other one question at a time, in any order. `steps` says who does something, and when one that fetches fails.
    fn run(n_nodes: usize, steps: &[(usize, bool)]) -> (Vec<Node>, usize) {
        let names: Vec<NodeName> = (0..n_nodes).map(|i| name(&format!("n{i}"))).collect();
        let mut nodes = vec![Node { stage: None, heard: Vec::new(), waits_for: Vec::new() }; n_nodes];
        let mut most_outside = 0;
        for &(i, fails) in steps {
            let i = i % n_nodes;
            let stages: Vec<Option<Stage>> = nodes.iter().map(|node| node.stage).collect();
            let node = &mut nodes[i];
            match node.stage {
                None => (node.stage, node.heard) = (Some(Stage::Asking), Vec::new()),
                Some(Stage::Coming) if fails => node.stage = None,
                Some(Stage::Coming) => {}
                Some(own @ (Stage::Behind | Stage::Waiting)) => {
                    let ahead = |&peer: &usize| stages[peer].is_some_and(|stage| goes_on(own, Some(&names[i]), &names[peer], stage));
                    if !node.waits_for.iter().any(ahead) {
                        (node.stage, node.heard) = (Some(Stage::Asking), Vec::new());
                    }
                }
                Some(Stage::Asking) => match (0..n_nodes).find(|peer| *peer != i && node.heard.iter().all(|(heard, _)| heard != peer)) {
                    Some(peer) => node.heard.push((peer, stages[peer])),
                    None => {
                        let wanting: Vec<(&NodeName, Stage)> =
                            node.heard.iter().filter_map(|(peer, stage)| Some((&names[*peer], (*stage)?))).collect();
                        match turn(Some(&names[i]), &wanting) {
                            Turn::Own => node.stage = Some(Stage::Coming),
                            Turn::Unsettled => node.heard.clear(),
                            Turn::Wait(on, stage) => {
                                node.waits_for = on.iter().map(|peer| names.iter().position(|name| name == *peer).unwrap()).collect();
                                node.stage = Some(stage);
                            }
                        }
                    }
                },
            }
            most_outside = most_outside.max(nodes.iter().filter(|node| node.stage == Some(Stage::Coming)).count());
        }
        (nodes, most_outside)
    }

    proptest! {
        #[test]
        fn whoever_asks_when_and_whoever_fails_one_goes_at_a_time_and_in_the_end_one_does(
            n_nodes in 1..5_usize,
            mut steps in prop::collection::vec((0..5_usize, prop::bool::weighted(0.1)), 0..200),
        ) {
            // After that nobody fails any more, and all are let do something again and again.
            steps.extend((0..n_nodes * 60).map(|i| (i, false)));
            let (nodes, most_outside) = run(n_nodes, &steps);
            prop_assert_eq!(most_outside, 1, "{:?}", nodes);
            prop_assert_eq!(nodes.iter().filter(|node| node.stage == Some(Stage::Coming)).count(), 1, "{:?}", nodes);
        }
    }
}
