"""Few-step students of video pipelines: their weights in everyone's names, their steps, and what is exported of them.

===============  ========================================================================================
module           contents
===============  ========================================================================================
`weights`        all weights of a student or a LoRA, fitted to a transformer; LoRAs extracted from full ones
`wan_files`      files of them in the names of diffusers, PEFT, LightX2V, ComfyUI and kohya's trainers
`few_steps`      a pipeline with a student's weights and steps and without guidance, undone exactly
`wan`            `WanStudent`, the base of methods whose students are run so
`lightx2v`       the configuration of LightX2V, written and read
`export`         formats of ``fewstep export``
`inputs`         inputs of ``fewstep run``: a video from a prompt
===============  ========================================================================================
"""
