"""Pure helpers: frames and transforms, cameras, images, files."""
