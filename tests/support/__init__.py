"""What tests share: sites to crawl and databases to keep them in. Real servers, all of them on loopback."""
