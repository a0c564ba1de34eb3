package admin

import "millrace/shared/match"

// compilePattern returns what browse, jobs and automations select alike, or says what is wrong with the member that
// holds the pattern.
func compilePattern(member, prefix, pattern string, recursive bool) (*match.Matcher, error) {
	m, err := match.Compile(prefix, pattern, recursive)
	if err != nil {
		return m, invalid(member, "is not a glob: %s. Allowed are * ? [a-z] ** and {a,b}, such as *.{mp4,mov}", err)
	}
	return m, nil
}
