package main

import (
	"errors"

	"github.com/spf13/cobra"
)

func shellCommand() *cobra.Command {
	return &cobra.Command{Use: "shell", RunE: func(*cobra.Command, []string) error { return errors.New("todo") }}
}
func testCommand() *cobra.Command {
	return &cobra.Command{Use: "test", RunE: func(*cobra.Command, []string) error { return errors.New("todo") }}
}
func kublkCommand() *cobra.Command {
	return &cobra.Command{Use: "kublk", RunE: func(*cobra.Command, []string) error { return errors.New("todo") }}
}
