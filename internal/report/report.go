// Package report has the errors that people see: one line each, with what failed, why, and what
// to do about it, and the exit status that goes with it.
package report

import (
	"errors"
	"fmt"
	"strings"
)

// Code is the exit status of the ubcache command.
type Code int

// The exit statuses; scripts depend on them.
const (
	OK         Code = 0
	Failed     Code = 1 // something went wrong
	Usage      Code = 2 // the command line is wrong
	Refused    Code = 3 // would harm: in use, holds data, wrong device; nothing was changed
	NotRunning Code = 4 // no daemon serves the cache
)

// Error is an error for people.
type Error struct {
	Code Code   `json:"code"`
	What string `json:"what"`           // what failed: "format /dev/sdb"
	Why  string `json:"why"`            // the cause
	Hint string `json:"hint,omitempty"` // what to do; may be empty
	err  error
}

func (e *Error) Error() string {
	s := e.What
	if e.Why != "" {
		if s != "" {
			s += ": "
		}
		s += e.Why
	}
	if e.Hint != "" {
		s += " (" + e.Hint + ")"
	}
	return oneLine(s)
}

// Unwrap gives the cause, if the error was made from one.
func (e *Error) Unwrap() error { return e.err }

// oneLine keeps the promise of one line whatever the cause contains.
func oneLine(s string) string {
	return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == '\n' }), "; ")
}

// Refuse is an error that says that nothing was changed.
func Refuse(what, why, hint string) *Error {
	return &Error{Code: Refused, What: what, Why: why, Hint: hint}
}

// Fail is an ordinary failure.
func Fail(what, why, hint string) *Error {
	return &Error{Code: Failed, What: what, Why: why, Hint: hint}
}

// Misuse is a wrong command line.
func Misuse(format string, args ...any) *Error {
	return &Error{Code: Usage, Why: fmt.Sprintf(format, args...)}
}

// Wrap says what failed with err and what to do. It keeps the code of an Error.
func Wrap(what string, err error, hint string) *Error {
	code := CodeOf(err)
	return &Error{Code: code, What: what, Why: err.Error(), Hint: hint, err: err}
}

// CodeOf is the exit status of an error.
func CodeOf(err error) Code {
	var e *Error
	switch {
	case err == nil:
		return OK
	case errors.As(err, &e):
		return e.Code
	}
	return Failed
}
