"""Running a package: sessions and the runtimes beneath them."""
