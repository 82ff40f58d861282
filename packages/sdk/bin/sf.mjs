#!/usr/bin/env node
// The `sf` command. A file of its own, as npm links commands when it installs, before the build.
import '../dist/cli/main.js';
