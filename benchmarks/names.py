"""Names of the figures that must always stand in metrics/benchmarks.json, and of those that a GPU gives."""

ARCHS = ("single_stream", "dual_stream")
TOWERS = ("vit_b16", "vit_l14")
EXTRACTION = ("extract_frames_per_second", "decode_frames_per_second", "encode_frames_per_second")

MFU = (
    "matmul_peak_tflops",
    "tokens_pretrain_base",
    "padding_share_pretrain_base",
    *(
        f"{what}_{arch}"
        for what in ("gflop_pretrain", "gflop_finetune", "videos_per_second_pretrain")
        for arch in ARCHS
    ),
    "gflop_predict_teacher",
    "gflop_train_teacher",
    "videos_per_second_teacher",
    "mfu_pretrain_base",
    "mfu_pretrain_base_dual_stream",
    "mfu_teacher_large",
)
GPU_EXTRACTION = (
    "extract_share_of_limit",
    *(f"{what}_{tower}" for tower in TOWERS for what in (*EXTRACTION, "extract_share_of_limit")),
)
GPU_PREDICT = ("predict_videos_per_s_wechat", "predict_overlap_ratio_wechat", "predict_share_of_limit_wechat")
PROJECTED = "projected_gpu_hours_"
GPU = frozenset({*MFU, *GPU_EXTRACTION, *GPU_PREDICT})

ALWAYS = (
    *(f"train_step_ratio_{arch}" for arch in ARCHS),
    "peak_rss_ratio_1m_over_100k",
    "noop_repro_seconds_1m",
    "mfu_pretrain_base",
    "mfu_teacher_large",
    "extract_share_of_limit",
    "predict_videos_per_s_wechat",
    "predict_overlap_ratio",
    f"{PROJECTED}wechat",
)


def needs_gpu(name: str) -> bool:
    return name in GPU or name.startswith(PROJECTED)
