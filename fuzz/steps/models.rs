//! The smallest networks that the library takes for a detector, a recogniser and a VAE, with weights from a formula.

use super::super::held::Held;
use super::super::proto::{bytes, int, model, node, node_of, tensor, value};

/// `count` weights between −0.5 and 0.5, as the bytes of float32.
fn weights(count: u64, seed: u64) -> Vec<u8> {
    (0..count)
        .flat_map(|i| ((((i + seed) * 7919) % 101) as f32 / 100.0 - 0.5).to_le_bytes())
        .collect()
}

/// A float tensor of such weights.
fn filled(name: &str, sizes: &[u64]) -> Vec<u8> {
    let count = sizes.iter().product();
    tensor(name, sizes, &[bytes(9, weights(count, name.len() as u64))])
}

/// A recogniser: 16 averages of each channel, and 128 sums of these. Its second output is the level "averages".
pub fn recogniser() -> Vec<u8> {
    let square: &[u64] = &[28, 28];
    model(&[
        node_of(
            "AveragePool",
            &["x"],
            "pooled",
            &[("kernel_shape", square), ("strides", square)],
        ),
        node("Flatten", "pooled", "averages"),
        node_of("MatMul", &["averages", "w"], "e", &[]),
        filled("w", &[48, 128]),
        value(11, "x", &[0, 3, 112, 112]),
        value(12, "e", &[0, 128]),
        value(12, "averages", &[0, 48]),
    ])
}

/// An SCRFD of two anchors at strides 8, 16 and 32: averages of a cell, and a linear map of their three channels to scores,
/// distances and landmarks.
pub fn detector() -> Vec<u8> {
    let mut fields = vec![value(11, "x", &[1, 3, 0, 0])];
    for (head, width) in [("score", 1u64), ("bbox", 4), ("kps", 10)] {
        for stride in [8u64, 16, 32] {
            let [cells, mapped, last, rows, out, w, shape] =
                ["cells", "mapped", "last", "rows", "out", "w", "shape"]
                    .map(|name| format!("{head}{stride}{name}"));
            let square: &[u64] = &[stride, stride];
            fields.extend([
                node_of(
                    "AveragePool",
                    &["x"],
                    &cells,
                    &[("kernel_shape", square), ("strides", square)],
                ),
                node_of("Conv", &[&cells, &w], &mapped, &[]),
                node_of("Transpose", &[&mapped], &last, &[("perm", &[0, 2, 3, 1])]),
                node_of("Reshape", &[&last, &shape], &rows, &[]),
                node(if head == "score" { "Sigmoid" } else { "Abs" }, &rows, &out),
                filled(&w, &[2 * width, 3, 1, 1]),
                bytes(
                    5,
                    [
                        bytes(8, &shape),
                        int(1, 2),
                        int(2, 7),
                        bytes(
                            9,
                            [(-1i64).to_le_bytes(), (width as i64).to_le_bytes()].concat(),
                        ),
                    ]
                    .concat(),
                ),
                value(12, &out, &[0, width]),
            ]);
        }
    }
    model(&fields)
}

/// The tensors of a VAE decoder by name.
pub type Named = Vec<(String, Held)>;

fn named(name: &str, shape: &[i64], into: &mut Named) {
    let count = shape.iter().product::<i64>() as u64;
    let data = weights(count, name.len() as u64)
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .collect();
    let shape = shape.to_vec();
    into.push((name.into(), Held { data, shape }));
}

/// AutoencoderKL with four latent channels, two levels of two channels each and one block a level. It doubles the side.
pub fn autoencoder() -> Named {
    let mut all = vec![];
    let mut conv = |name: &str, out: i64, from: i64, side: i64| {
        named(
            &format!("{name}.weight"),
            &[out, from, side, side],
            &mut all,
        );
        named(&format!("{name}.bias"), &[out], &mut all);
    };
    conv("post_quant_conv", 4, 4, 1);
    conv("decoder.conv_in", 2, 4, 3);
    conv("decoder.conv_out", 3, 2, 3);
    conv("decoder.up_blocks.0.upsamplers.0.conv", 2, 2, 3);
    let blocks: Vec<String> = (0..2)
        .map(|i| format!("decoder.mid_block.resnets.{i}"))
        .chain((0..4).map(|i| format!("decoder.up_blocks.{}.resnets.{}", i / 2, i % 2)))
        .collect();
    for block in &blocks {
        conv(&format!("{block}.conv1"), 2, 2, 3);
        conv(&format!("{block}.conv2"), 2, 2, 3);
    }
    let attention = "decoder.mid_block.attentions.0";
    let norms = blocks
        .iter()
        .flat_map(|block| [format!("{block}.norm1"), format!("{block}.norm2")])
        .chain([
            format!("{attention}.group_norm"),
            "decoder.conv_norm_out".into(),
        ]);
    for norm in norms {
        named(&format!("{norm}.weight"), &[2], &mut all);
        named(&format!("{norm}.bias"), &[2], &mut all);
    }
    for map in ["to_q", "to_k", "to_v", "to_out.0"] {
        named(&format!("{attention}.{map}.weight"), &[2, 2], &mut all);
        named(&format!("{attention}.{map}.bias"), &[2], &mut all);
    }
    all
}

/// A decoder of the TAESD family with four latent channels and no block. It doubles the side.
pub fn tiny_autoencoder() -> Named {
    let mut all = vec![];
    named("decoder.layers.0.weight", &[6, 4, 3, 3], &mut all);
    named("decoder.layers.0.bias", &[6], &mut all);
    named("decoder.layers.3.weight", &[6, 6, 3, 3], &mut all);
    named("decoder.layers.4.weight", &[3, 6, 3, 3], &mut all);
    named("decoder.layers.4.bias", &[3], &mut all);
    all
}
