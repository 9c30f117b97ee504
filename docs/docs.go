// Package docs has texts of the manual, for tests that try what a reader would paste.
package docs

import _ "embed"

// Attributes is attributes.md.
//
//go:embed attributes.md
var Attributes string
