//! What a loss may be configured to.

/// One line a key. Values that are refused are the matter of the target `config`.
pub const KEYS: [&[&str]; 18] = [
    &[
        r#""landmarks":"reference""#,
        r#""landmarks":"detect_or_reference""#,
    ],
    &[r#""face_align_mode":"kps""#],
    &[r#""decode":"window""#, r#""decode":"window_only""#],
    &[
        r#""norm_stats":"exact""#,
        r#""norm_stats":"predicted""#,
        r#""norm_stats":"cached""#,
        r#""norm_stats":"window""#,
    ],
    &[
        r#""norm_stats_t_max":0.5"#,
        r#""norm_stats_refresh":1"#,
        r#""norm_stats_cache":1"#,
    ],
    &[r#""audit_every":1"#, r#""audit_every":2,"audit_cosine":1"#],
    &[r#""window_halo":0"#, r#""window_halo":1"#],
    &[r#""t_min":0.3"#, r#""t_max":0.6"#],
    &[
        r#""time_weight":"one_minus_t""#,
        r#""time_weight":"inverse_t_squared""#,
        r#""time_weight":{"min_snr":5}"#,
        r#""time_weight":{"table":[0,1e30]}"#,
    ],
    &[r#""every_n_steps":2"#],
    &[
        r#""prediction":{"kind":"epsilon"}"#,
        r#""prediction":{"kind":"v","time":"alpha_bar"}"#,
        r#""prediction":{"kind":"sample"}"#,
        r#""prediction":{"kind":"custom"}"#,
        r#""prediction":{"kind":"flow","negated":true,"reversed_time":true}"#,
        r#""prediction":{"kind":"epsilon","time":"sigma"}"#,
    ],
    &[
        r#""packing":"flux""#,
        r#""packing":"flux2""#,
        r#""packing":"flux2_tokens""#,
    ],
    &[
        r#""latent_crop":{"x":1,"y":0,"width":2,"height":4}"#,
        r#""latent_crop":{"x":0,"y":0,"width":9223372036854775807,"height":1}"#,
    ],
    &[
        r#""latent_format":"none""#,
        r#""latent_format":"sd15""#,
        r#""latent_format":{"custom":{"scale":1e-300,"shift":0}}"#,
    ],
    &[r#""clamp":"soft""#, r#""clamp":"straight_through""#],
    &[
        r#""levels":{"averages":1,"embedding":0.5}"#,
        r#""levels":{"averages":1}"#,
        r#""gradient_limit":1e-30"#,
        r#""gradient_limit":2"#,
    ],
    &[
        r#""face_loss_weight":1e30"#,
        r#""face_loss_weight":0"#,
        r#""use_face_loss":false"#,
        r#""target_similarity":0.5"#,
    ],
    &[
        r#""reference_mode":"best""#,
        r#""reference_cache":0"#,
        r#""reference_cache":1"#,
        r#""face_choice":"index","face_index":3"#,
        r#""face_loss_type":"non_differentiable""#,
    ],
];
