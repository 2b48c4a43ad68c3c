//! The decoder's step: one computation for all families, described by the configuration.

use std::ops::Range;

use plexus_kernels::activation::softcap;
use plexus_kernels::attention::{Attention, KvPool, Span};
use plexus_kernels::norm::add_scaled;
use plexus_kernels::rope::rotate;
use plexus_kernels::{Activations, Forms, Product, Team, multiply};

use super::buffers::{Buffers, PIECE, for_rows, take, take_parts};
use super::network::Room;
use super::weights::{Decoder, Layer, Norm};
use crate::batch::Batch;
use crate::decoder::FeedForward;
use crate::layout::Layout;
use crate::model::{QkNorm, RopePairs};

/// Cosines and sines of the step's tokens, for one rotary embedding.
struct Angles {
    /// `[n_tokens, dim / 2]` each.
    cos: Vec<f32>,
    sin: Vec<f32>,
    half: usize,
    pairs: RopePairs,
}

/// Some neighbouring tokens of a step.
struct Piece<'a> {
    tokens: Range<usize>,
    /// What of the step's spans is in it, counted from its first token.
    spans: Vec<Span<'a>>,
    /// Where the keys and values of its tokens go.
    slots: &'a [u32],
}

impl<'a> Piece<'a> {
    fn of(tokens: Range<usize>, spans: &[Span<'a>], slots: &'a [u32]) -> Self {
        let part = |span: &Span<'a>| {
            let (from, to) = (span.start.max(tokens.start), (span.start + span.len).min(tokens.end));
            let first_position = span.first_position + from.saturating_sub(span.start);
            (from < to).then(|| Span { start: from - tokens.start, len: to - from, first_position, blocks: span.blocks })
        };
        Self { spans: spans.iter().filter_map(part).collect(), slots: &slots[tokens.clone()], tokens }
    }
}

impl Decoder {
    /// Computes a step: writes keys and values to the pools and gives the logits of `rows`, `[n_rows, vocab_size]`, which may be changed.
    pub(super) fn forward<'a>(
        &self,
        team: &Team,
        batch: &Batch,
        layout: &Layout<'_>,
        rows: &[u32],
        pools: &mut [KvPool],
        buffers: &'a mut Buffers,
    ) -> &'a mut [f32] {
        self.run_layers(team, batch, layout, pools, buffers);
        let config = &self.config;
        let hidden = config.hidden;
        let head = self.head();
        let x = &buffers.x[..batch.tokens.len() * hidden];
        buffers.input.compute(team, rows.len(), hidden, Forms::of(head.format()), &|row, out| {
            out.copy_from_slice(&x[rows[row] as usize * hidden..][..hidden]);
            self.norm.apply(out);
        });
        let logits = take(&mut buffers.logits, rows.len() * config.vocab_size);
        multiply(team, &mut [Product { matrix: head, out: &mut *logits }], &buffers.input);
        if config.logits_softcap.is_some() || config.logits_scale != 1.0 {
            for_rows(team, logits, config.vocab_size, &|_, rows| softcap(rows, config.logits_scale, config.logits_softcap));
        }
        logits
    }

    /// The same without the output projection: the hidden states of all tokens, `[n_tokens, hidden]`, which may be changed.
    pub(super) fn hidden<'a>(
        &self,
        team: &Team,
        batch: &Batch,
        layout: &Layout<'_>,
        pools: &mut [KvPool],
        buffers: &'a mut Buffers,
    ) -> &'a mut [f32] {
        self.run_layers(team, batch, layout, pools, buffers);
        let hidden = &mut buffers.x[..batch.tokens.len() * self.config.hidden];
        for_rows(team, hidden, self.config.hidden, &|_, rows| self.norm.apply(rows));
        hidden
    }

    /// Computes all layers of a step; what they give is left in `buffers.x`, `[n_tokens, hidden]`.
    fn run_layers(&self, team: &Team, batch: &Batch, layout: &Layout<'_>, pools: &mut [KvPool], buffers: &mut Buffers) {
        let config = &self.config;
        let (n, hidden) = (batch.tokens.len(), config.hidden);
        let x = take(&mut buffers.x, n * hidden);
        for_rows(team, x, hidden, &|first, rows| {
            for (row, token) in rows.chunks_exact_mut(hidden).zip(&batch.tokens[first..]) {
                self.embedding.embed(*token as usize, row);
                softcap(row, config.embedding_scale, None);
            }
        });
        buffers.blocks.clear();
        buffers.blocks.extend(batch.blocks.iter().map(|block| block.0));
        let blocks = std::mem::take(&mut buffers.blocks);
        let spans = layout.spans.iter().zip(batch.block_starts.windows(2)).map(|(span, starts)| Span {
            start: span.start,
            len: span.len,
            first_position: span.first_position,
            blocks: &blocks[starts[0] as usize..starts[1] as usize],
        });
        let spans: Vec<Span<'_>> = spans.collect();
        let angles = self.angles(&batch.positions);
        let pieces: Vec<Piece<'_>> =
            (0..n).step_by(PIECE).map(|from| Piece::of(from..n.min(from + PIECE), &spans, &layout.slots)).collect();
        for (index, layer) in self.layers.iter().enumerate() {
            // A piece's tokens look at no later ones, whose keys and values are then not there yet.
            pieces.iter().for_each(|piece| self.attend(team, index, &angles, piece, &mut pools[index], buffers));
            match &layer.ffn {
                FeedForward::Dense(_) => pieces.iter().for_each(|piece| self.feed_forward(team, layer, buffers, piece.tokens.clone())),
                FeedForward::Experts(_) => self.feed_forward(team, layer, buffers, 0..n),
            }
        }
        buffers.blocks = blocks;
    }

    fn angles(&self, positions: &[u32]) -> Vec<Angles> {
        let angles = self.ropes.iter().map(|rope| {
            let (cos, sin) = rope.angles(positions);
            Angles { cos, sin, half: rope.dim / 2, pairs: rope.pairs }
        });
        angles.collect()
    }

    /// Attention of one layer, added to the residual stream.
    fn attend(&self, team: &Team, index: usize, angles: &[Angles], piece: &Piece<'_>, pool: &mut KvPool, buffers: &mut Buffers) {
        let (config, layer) = (&self.config, &self.layers[index]);
        let (width, kv_width) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        let n = piece.tokens.len();
        let [q, k, v, attended] = take_parts(&mut buffers.work, [n * width, n * kv_width, n * kv_width, n * width]);
        let forms = layer.q.forms().and(layer.k.forms()).and(layer.v.forms());
        let x = &mut buffers.x[piece.tokens.start * config.hidden..piece.tokens.end * config.hidden];
        normed(team, &mut buffers.input, x, config.hidden, forms, layer.attention_norm.as_ref());
        let products = &mut [
            Product { matrix: &layer.q.matrix, out: &mut *q },
            Product { matrix: &layer.k.matrix, out: &mut *k },
            Product { matrix: &layer.v.matrix, out: &mut *v },
        ];
        multiply(team, products, &buffers.input);
        let angles = config.layers[index].rope.map(|rope| &angles[rope]);
        let prepare = |first: usize, rows: &mut [f32], width: usize, norm: Option<&Norm>| {
            for (i, row) in rows.chunks_exact_mut(width).enumerate() {
                if let Some(norm) = norm {
                    norm.apply(row); // one head after the other where its weight is as wide as a head
                }
                if let Some(Angles { cos, sin, half, pairs }) = angles {
                    let at = (piece.tokens.start + first + i) * half;
                    rotate(row, config.head_dim, &cos[at..at + half], &sin[at..at + half], *pairs);
                }
            }
        };
        let norms = layer.qk_norms.as_ref().filter(|_| config.qk_norm != QkNorm::None);
        for_rows(team, q, width, &|first, rows| {
            layer.q.finish(rows);
            prepare(first, rows, width, norms.map(|(q, _)| q));
        });
        for_rows(team, k, kv_width, &|first, rows| {
            layer.k.finish(rows);
            prepare(first, rows, kv_width, norms.map(|(_, k)| k));
        });
        if layer.v.bias.is_some() {
            for_rows(team, v, kv_width, &|_, rows| layer.v.finish(rows));
        }
        pool.write(team, piece.slots, k, v);
        let attention = Attention {
            heads: config.heads,
            scale: config.attention_scale,
            softcap: config.attention_softcap,
            window: config.layers[index].window,
        };
        attention.run(team, pool, &piece.spans, q, attended);
        buffers.input.load(team, attended, width, layer.o.forms());
        let y = take(&mut buffers.y, n * config.hidden);
        multiply(team, &mut [Product { matrix: &layer.o.matrix, out: &mut *y }], &buffers.input);
        if layer.o.bias.is_some() {
            for_rows(team, y, config.hidden, &|_, rows| layer.o.finish(rows));
        }
        self.add(team, x, y, layer.attention_post_norm.as_ref());
    }

    /// The feed-forward network of one layer, added to the residual stream of `tokens`.
    fn feed_forward(&self, team: &Team, layer: &Layer, buffers: &mut Buffers, tokens: Range<usize>) {
        let (n, hidden) = (tokens.len(), self.config.hidden);
        let x = &mut buffers.x[tokens.start * hidden..tokens.end * hidden];
        let y = take(&mut buffers.y, n * hidden);
        let room = Room { work: &mut buffers.work, inner: &mut buffers.inner };
        match &layer.ffn {
            FeedForward::Dense(network) => {
                normed(team, &mut buffers.input, x, hidden, network.forms(), layer.ffn_norm.as_ref());
                network.forward(team, &buffers.input, room, y);
            }
            FeedForward::Experts(experts) => {
                let input = take(&mut buffers.experts.normed, n * hidden);
                input.copy_from_slice(x);
                if let Some(norm) = &layer.ffn_norm {
                    for_rows(team, input, hidden, &|_, rows| norm.apply(rows));
                }
                experts.forward(team, hidden, &mut buffers.input, room, &mut buffers.experts, y);
            }
        }
        self.add(team, x, y, layer.ffn_post_norm.as_ref());
    }

    /// `x += norm(y) * residual_scale`.
    fn add(&self, team: &Team, x: &mut [f32], y: &mut [f32], norm: Option<&Norm>) {
        let hidden = self.config.hidden;
        if let Some(norm) = norm {
            for_rows(team, y, hidden, &|_, rows| norm.apply(rows));
        }
        let y = &*y;
        for_rows(team, x, hidden, &|first, rows| {
            let y = &y[first * hidden..][..rows.len()];
            add_scaled(rows, y, self.config.residual_scale);
        });
    }
}

/// Takes the rows of `x`, normed, as the input of products.
fn normed(team: &Team, input: &mut Activations, x: &[f32], width: usize, forms: Forms, norm: Option<&Norm>) {
    match norm {
        Some(norm) => input.compute(team, x.len() / width, width, forms, &|row, out| {
            out.copy_from_slice(&x[row * width..][..width]);
            norm.apply(out);
        }),
        None => input.load(team, x, width, forms),
    }
}
