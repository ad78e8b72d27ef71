# powershell completion for PROGRAM
Register-ArgumentCompleter -Native -CommandName PROGRAM -ScriptBlock {
    param($wordToComplete, $commandAst, $cursorPosition)
    $before = @($commandAst.CommandElements | Where-Object { $_.Extent.EndOffset -lt $cursorPosition })
    $typed = @($before | Select-Object -Skip 1 | ForEach-Object { "$_" })
    $word = "$wordToComplete"
    # Older versions lose an argument that is empty, unless it is written like this.
    $legacy = $PSVersionTable.PSVersion -lt [version]'7.3.0' -or $PSNativeCommandArgumentPassing -eq 'Legacy'
    $last = if ($word -eq '' -and $legacy) { '""' } else { $word }
    $lines = @(& "$($before[0])" __complete @typed $last 2>$null)
    $flag = ''
    if ($word -match '^(-[^=]*=)(.*)$') { $flag, $word = $Matches[1], $Matches[2] }
    $lines | Where-Object { -not $_.StartsWith(':') } | ForEach-Object {
        $name, $about = $_ -split "`t", 2
        if (-not $about) { $about = $name }
        if ($name.StartsWith($word)) {
            [System.Management.Automation.CompletionResult]::new("$flag$name", $name, 'ParameterValue', $about)
        }
    }
}
