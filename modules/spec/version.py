"""The program's version, as the page, the API and the recipes in pictures tell it."""

VERSION = "0.1.0"
