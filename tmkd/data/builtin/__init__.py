"""The built-in data set: documentation packages of Debian, their FAQs, and the pairs made of them."""
