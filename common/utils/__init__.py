"""Pure helpers: frames and transforms, cameras, hand-model files, pictures, exports."""
