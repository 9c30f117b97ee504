// Package repo has no code for anybody: its tests keep the source tree as CONTRIBUTING.md and
// docs/design.md say it is.
package repo
