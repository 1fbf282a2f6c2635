"""The contenders. Each module is a program that crawls the site once and prints one line of JSON."""
